"""A run in a bucket ends like one on a disk, whatever happens to either."""

import json
import os
import signal
import subprocess
import time

import pytest

from gen_jax.cli import main
from gen_jax.system import files, stores
from tests import s3
from tests.e2e import test_hosts, test_resume

PYDOC = "configs/lm/pydoc.py"


def words(workdir):
  gpt2 = ("--config.task.model.position=learned", "--config.task.model.rotary=None")
  return [*test_resume.train_words(PYDOC, workdir), *gpt2]  # can be exported


def run(words, env, **more):
  return subprocess.run(
    words, cwd=test_resume.ROOT, env=env, capture_output=True, text=True, **more
  )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run on a disk, which nothing disturbs; and the environment of its like."""
  folder = tmp_path_factory.mktemp("disk")
  env = test_resume.environment(folder)
  done = run(words(folder / "run"), env)
  assert done.returncode == 0, done.stderr
  return folder / "run", env


def environment(whole):
  """Of a process that finds the bucket of this one."""
  names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL")
  return {**whole[1], **{name: os.environ[name] for name in names}}


def text_of(workdir, *names):
  """What commands leave of a run, without what says where it is."""
  home = files.path(workdir, "workdir")
  return [(home / name).read_bytes() for name in names]


@pytest.mark.long
def test_killed_and_resumed_in_a_bucket_equals_uninterrupted_on_a_disk(
  whole, bucket, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  here, there, env = str(whole[0]), f"{bucket}/runs/one", environment(whole)
  test_resume.kill_at(words(there), env, 8)
  done = run(words(there), env)
  assert done.returncode == 0, done.stderr
  assert "resuming" in done.stdout and "from step 0 " not in done.stdout
  assert test_resume.hashes(here) == test_resume.hashes(there)
  results = []
  for home in (here, there):
    said = [main.run(["sample", "--workdir", home, "--prompt=The ", "--max_tokens=8"])]
    said += [main.run(["evaluate", "--workdir", home])]
    main.run(["export", "--workdir", home, "--to", f"{home}-exported"])
    main.run(["report", "--workdir", home])
    assert files.path(f"{home}/report.html", "x").read_bytes().startswith(b"<!")
    exported = files.path(f"{home}-exported", "x")
    names = files.names(exported)
    results.append(
      (
        [one["text"] for one in said[0]["samples"]],
        {k: v for k, v in said[1].items() if k != "workdir"},
        files.hashes(exported, names),
        text_of(home, "config.json", "evaluation.json", "samples/text.jsonl"),
      )
    )
  assert results[0] == results[1]
  assert "model.safetensors" in results[0][2]
  losses = [
    {row["step"]: row["loss"] for row in main_rows(home) if "loss" in row}
    for home in (here, there)
  ]
  assert losses[0] == losses[1]
  assert os.listdir(tmp_path) == []  # no folder called "s3:"


def main_rows(home):
  return [json.loads(row) for row in text_of(home, "metrics.jsonl")[0].splitlines()]


@pytest.mark.long
def test_two_processes_without_a_shared_disk_are_one_run(bucket, tmp_path):
  """Killed on two, and resumed on one; the folder of neither holds anything."""
  disk = tmp_path / "disk" / "run"
  ((code, _, stderr),) = test_hosts.finish(test_hosts.start(disk, 1))
  assert code == 0, stderr
  there = files.path(f"{bucket}/run", "x")
  folders = [tmp_path / "a", tmp_path / "b"]
  for folder in folders:
    folder.mkdir()

  def start(number):
    env = test_hosts.environment(disk, number)
    port = test_hosts.free_port()
    return [
      subprocess.Popen(
        [
          *(test_hosts.sys.executable, *test_hosts.PROGRAM, "train"),
          f"--config={test_hosts.ROOT}/configs/lm/pydoc.py:smoke",
          *test_hosts.WORDS[1:],
          f"--workdir={there}",
          f"--coordinator=localhost:{port}",
          f"--num_processes={number}",
          f"--process_id={i}",
        ],
        cwd=folders[i],
        env={**env, "PYTHONPATH": str(test_hosts.ROOT), "HOME": str(folders[i])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for i in range(number)
    ]

  processes = start(2)
  for line in processes[0].stdout:
    if line.startswith("step 25/"):
      break
  for process in processes:
    process.send_signal(signal.SIGKILL)
  test_hosts.finish(processes)
  assert 10 in [int(p.name) for p in (there / "checkpoints").iterdir()]
  for code, _, stderr in test_hosts.finish(start(2)):
    assert code == 0, stderr
  rows = {row["step"]: row["loss"] for row in main_rows(there) if "loss" in row}
  test_hosts.assert_same(rows, test_hosts.losses(disk))
  for folder in folders:
    assert not [name for name in os.listdir(folder) if not name.startswith(".")]


@pytest.mark.long
def test_a_second_run_is_refused_and_the_first_goes_on(whole, bucket):
  env = environment(whole)
  first = subprocess.Popen(
    words(f"{bucket}/run"),
    cwd=test_resume.ROOT,
    env=env,
    stdout=subprocess.PIPE,
    text=True,
  )
  first.stdout.readline()
  second = run(words(f"{bucket}/run"), env)
  assert second.returncode == 2
  (line,) = second.stderr.splitlines()
  assert f"another run (host {os.uname().nodename}, process {first.pid})" in line
  first.communicate()
  assert first.returncode == 0
  assert test_resume.hashes(str(whole[0])) == test_resume.hashes(f"{bucket}/run")


@pytest.mark.long
@pytest.mark.parametrize("secs", [4, None])
def test_a_bucket_that_goes_away_in_a_save(whole, bucket, s3_port, secs):
  """For a while: it is waited for. For good: exit 75, and the same command goes on."""
  line = s3.Line(s3_port)
  env = {**environment(whole), "AWS_ENDPOINT_URL": f"http://127.0.0.1:{line.port}"}
  env[stores.PATIENCE] = "60" if secs else "3"
  process = subprocess.Popen(
    words(f"{bucket}/run"),
    cwd=test_resume.ROOT,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  for said in process.stdout:
    if said.startswith("step 6/"):
      line.cut()
      break
  if secs:
    time.sleep(secs)
    line.mend()
  _, stderr = process.communicate(timeout=120)
  assert "does not answer" in stderr and "Traceback" not in stderr
  if secs:
    assert process.returncode == 0, stderr
    assert f"{bucket} answers again" in stderr
  else:
    assert process.returncode == os.EX_TEMPFAIL, stderr
    assert "the same command goes on when it does" in stderr.splitlines()[-1]
    line.mend()
    done = run(words(f"{bucket}/run"), env)
    assert done.returncode == 0, done.stderr
  assert test_resume.hashes(str(whole[0])) == test_resume.hashes(f"{bucket}/run")
