"""What `gen-jax launch` would run: one engine after another, word for word."""

import json
import pathlib
import shlex

import pytest

from gen_jax import types
from gen_jax.cli import engines, main

WORDS = [
  "train",
  "--config=c.py",
  "--workdir=/nfs/run",
  "--config.data.source.pattern=a b",
]


def job(**fields):
  fields = {"directory": "code dir", "python": "/opt/python", "setup": "make", **fields}
  return engines.Job(WORDS, **fields)


PROGRAM = (
  "/opt/python -m gen_jax.cli.main train --config=c.py --workdir=/nfs/run"
  " '--config.data.source.pattern=a b'"
)


def test_ssh_gives_every_host_its_number_and_all_the_same_coordinator():
  plan = engines.ssh(job(hosts="me@a,b", port=99, option=["-p", "22"]))
  assert [command[-2] for command in plan.start] == ["me@a", "b"]
  for i, command in enumerate(plan.start):
    assert command[0] == "ssh" and "BatchMode=yes" in command and command[-5] == "-p"
    assert command[-3] == "--"  # what follows is no flag
    place, env, program = command[-1].partition("exec env ")
    assert place == f"cd 'code dir' && echo $$ > launch-{i}.pid && " and env
    assert program.endswith(PROGRAM)
    variables = dict(word.split("=", 1) for word in shlex.split(program)[:4])
    assert variables == {
      "JAX_COORDINATOR_ADDRESS": "a:99",
      "JAX_NUM_PROCESSES": "2",
      "JAX_PROCESS_ID": str(i),
      "GEN_JAX_HOSTS": "a,b",
    }
  assert [command[-1] for command in plan.stop] == [
    f"cd 'code dir' && {{ for i in 1 2 3 4 5; do [ -s launch-{i}.pid ] && break;"
    f" sleep 1; done; kill -TERM $(cat launch-{i}.pid); }}"
    for i in range(2)
  ]
  copies = [command for command in plan.prepare if command[0] == "rsync"]
  assert [command[-2:] for command in copies] == [
    ("./", "me@a:code dir/"),
    ("./", "b:code dir/"),
  ]
  assert not any("delete" in word for command in copies for word in command)
  assert plan.prepare[-1][-1] == "cd 'code dir' && make" and not plan.restarts


def test_tpu_vm_asks_all_workers_and_creates_what_is_not_ready():
  pod = {"name": "pod", "zone": "z"}
  plan = engines.tpu_vm(job(**pod, option=["--accelerator-type=v5litepod-16"]))
  verbs = [c[4] for c in plan.prepare if c[0] == "gcloud"]
  assert verbs == ["scp", "ssh", "ssh"]
  for command in (*plan.start, *plan.stop, *plan.prepare[2:]):
    assert command[:4] == ("gcloud", "compute", "tpus", "tpu-vm")
    assert "--worker=all" in command and "--zone=z" in command
  (start,) = plan.start
  assert start[5] == "pod" and start[7] == (
    f"--command=cd 'code dir' && echo $$ > launch.pid && exec env {PROGRAM}"
  )
  create = plan.prepare[0][-1]
  assert create.startswith('[ "$(gcloud compute tpus tpu-vm describe pod ')
  assert "= READY ] || { gcloud compute tpus tpu-vm delete pod --quiet" in create
  assert "tpu-vm create pod --accelerator-type=v5litepod-16 --zone=z; }" in create
  without = engines.tpu_vm(job(**pod))
  assert without.prepare[0][0] == "tar"


def test_slurm_waits_for_one_job_that_is_requeued():
  plan = engines.slurm(job(num_hosts=4, option=["--ntasks-per-node=8"]))
  (submit,) = plan.start
  assert submit[0] == "sbatch" and {"--wait", "--requeue", "--nodes=4"} <= set(submit)
  # The later flag wins.
  assert submit.index("--ntasks-per-node=1") < submit.index("--ntasks-per-node=8")
  assert submit[-1].startswith("--wrap=make && GEN_JAX_HOSTS=$(scontrol show hostnames")
  assert submit[-1].endswith(f" srun --kill-on-bad-exit=1 {PROGRAM}")
  log = next(w.removeprefix("--output=") for w in submit if w.startswith("--output="))
  assert plan.follow[0][-1] == log and plan.restarts
  assert {command[1] for command in plan.stop} == {"--state=PENDING", "--signal=TERM"}


def test_sky_s_yaml_is_a_managed_spot_job_with_a_bucket():
  spot = {"option": ["accelerators=A100:8"], "bucket": "s3://b"}
  plan = engines.sky(job(name="job", num_hosts=2, port=99, **spot))
  ((path, text),) = plan.files.items()
  assert plan.start == [("sky", "jobs", "launch", "--yes", "--name=job", path)]
  task = json.loads(text)
  run = task.pop("run")
  assert task == {
    "name": "job",
    "workdir": ".",
    "num_nodes": 2,
    "resources": {"use_spot": True, "accelerators": "A100:8"},
    "setup": "make",
    "file_mounts": {"/bucket": {"source": "s3://b", "mode": "MOUNT_CACHED"}},
  }
  assert run.endswith(PROGRAM)
  assert 'JAX_COORDINATOR_ADDRESS="$(echo "$SKYPILOT_NODE_IPS" | head -n1):99"' in run
  assert 'JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES"' in run
  assert 'JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"' in run


@pytest.mark.parametrize(
  "words, message",
  [
    (["--on=ssh", "--hosts=a,b"], "after -- comes the command"),
    (["--on=ssh", "--hosts=a", "--", "inspect"], "one of train, evaluate, sample"),
    (["--on=ssh", "--", *WORDS], "--on ssh needs --hosts"),
    (["--on=ssh", "--hosts=a,,b", "--", *WORDS], "--on ssh needs --hosts"),
    (["--on=tpu-vm", "--name=x", "--", *WORDS], "--name and --zone"),
    (["--on=slrum", "--", *WORDS], "did you mean 'slurm'"),
    (["--on=sky", "--option=A100", "--", *WORDS], "must be KEY=VALUE"),
    (["--on=sky", "--", *WORDS], "--on sky needs sky on this machine"),
    (["--on=ssh", "--hosts=-oProxyCommand=x", "--", *WORDS], "NAME or USER@NAME"),
    (["--on=ssh", "--hosts=a,b;reboot", "--", *WORDS], "'b;reboot' must be NAME"),
    (["--on=ssh", "--hosts=a,-b@c", "--", *WORDS], "'-b@c' must be NAME"),
    (["--on=ssh", "--hosts=$(id)", "--", *WORDS], "must be NAME"),
    (["--on=ssh", "--hosts=a b", "--", *WORDS], "must be NAME"),
    (["--on=ssh", "--hosts=a", "--port=0", "--", *WORDS], r"--port 0 must be in \[1"),
    (["--on=ssh", "--hosts=a", "--port=65536", "--", *WORDS], "--port 65536 must"),
    (["--on=ssh", "--hosts=a", "--retries=-1", "--", *WORDS], "--retries -1 must be"),
    (["--on=ssh", "--hosts=a", "--python=x;y", "--", *WORDS], "--python 'x;y' must"),
    (["--on=ssh", "--hosts=a", "--directory=-r", "--", *WORDS], "--directory '-r'"),
    (["--on=ssh", "--hosts=a", "--directory=a`b`", "--", *WORDS], "--directory"),
    (["--on=slurm", "--num_hosts=0", "--", *WORDS], "--num_hosts 0 must be in"),
    (["--on=slurm", "--name=../x", "--", *WORDS], "--name '../x' must be a plain"),
    (["--on=tpu-vm", "--name=--x", "--zone=z", "--", *WORDS], "--name '--x' must be"),
    (["--on=tpu-vm", "--name=x", "--zone=z z", "--", *WORDS], "--zone 'z z' must"),
    (["--on=sky", "--bucket=s3://b;x", "--", *WORDS], "--bucket 's3://b;x' must"),
  ],
)
def test_bad_input_is_one_line(words, message, monkeypatch, tmp_path):
  monkeypatch.setenv("PATH", str(tmp_path))
  with pytest.raises(types.InputError, match=message):
    main.run(["launch", *words])


def test_a_dry_run_prints_and_runs_nothing(capsys, monkeypatch, tmp_path):
  monkeypatch.setenv("PATH", str(tmp_path))
  result = main.run(["launch", "--on=ssh", "--hosts=a,b", "--dry_run", "--", *WORDS])
  out = capsys.readouterr().out
  for part in ("prepare", "start", "stop"):
    assert all(shlex.join(command) in out for command in result[part])
  assert "'\"'\"'--config.data.source.pattern=a b'\"'\"'" in out


@pytest.mark.parametrize("engine", ["ssh", "tpu_vm", "slurm", "sky"])
def test_a_word_of_the_command_stays_one_word(engine):
  """Whatever a shell would read in it: the text is split as a shell splits it."""
  words = ["train", "--config=$(id) `id` 'x' \"y\" ; & | > *", "--a=\n"]
  places = {"hosts": "a,b", "name": "pod", "zone": "z", "python": "python3"}
  plan = getattr(engines, engine)(engines.Job(words, **places))
  texts = [word for command in plan.start for word in command]
  texts += plan.files.values()
  text = next(text for text in texts if "gen_jax.cli.main" in text)
  text = json.loads(text)["run"] if engine == "sky" else text
  tail = text[text.index("python3 -m gen_jax.cli.main") :]
  assert shlex.split(tail)[3:] == words


def test_files_are_for_this_user_alone_and_gone_afterwards(monkeypatch, tmp_path):
  """The archive or YAML stands in a folder that nobody else can write to or guess."""
  seen = tmp_path / "seen"
  program = tmp_path / "sky"
  program.write_text(
    f'#!/bin/sh\nfor f; do :; done; ls -ld "${{f%/*}}" "$f" > {seen}\n'
  )
  program.chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
  main.run(["launch", "--on=sky", "--name=job", "--", *WORDS])
  folder, file = (line.split() for line in seen.read_text().splitlines())
  assert folder[0] == "drwx------" and file[-1].endswith("/job.yaml")
  assert not pathlib.Path(folder[-1]).exists()
