"""Several real processes, joined by gloo, are one run."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.data.tokens import made

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 42
RATE = {"name": "constant", "peak": 3e-3}  # the same at step i of whatever number
WORDS = (
  "--config=configs/lm/pydoc.py:smoke",
  f"--config.train.num_steps={STEPS}",
  "--config.train.log_every=1",
  "--config.train.save_every=10",
  "--config.train.health_check=False",
  "--config.evaluators={}",
  f"--config.optimizer.learning_rate={RATE}",
  "--config.mesh.data=2",
  "--config.mesh.fsdp=2",
)


def free_port():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]


def environment(workdir, number):
  return {
    **os.environ,
    "TFDS_DATA_DIR": str(workdir.parent / "data"),
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(4 // number),
  }


PROGRAM = ("-m", "gen_jax.cli.main")


def start(workdir, number, *words, indices=None, program=PROGRAM):
  """Starts the processes of a run of four devices."""
  env = environment(workdir, number)
  words = [
    *(sys.executable, *program, "train", *WORDS),
    f"--workdir={workdir}",
    f"--coordinator=localhost:{free_port()}",
    f"--num_processes={number}",
    *words,
  ]
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
  return [
    subprocess.Popen([*words, f"--process_id={i}"], cwd=ROOT, env=env, **pipes)
    for i in (range(number) if indices is None else indices)
  ]


def finish(processes):
  """[(exit code, stdout, stderr)] of all."""
  said = [process.communicate(timeout=120) for process in processes]
  return [(p.returncode, *s) for p, s in zip(processes, said, strict=True)]


def losses(workdir):
  rows = [json.loads(r) for r in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The losses of a run that one process makes."""
  workdir = tmp_path_factory.mktemp("alone") / "run"
  ((code, _, stderr),) = finish(start(workdir, 1))
  assert code == 0, stderr
  return losses(workdir)


SSH = """#!/bin/sh
# A host is a folder; the first start on one of them finds it unreachable.
while [ "$1" = -o ]; do shift 2; done
[ "$1" = -- ] && shift
mkdir -p "$HOSTS/$1" && cd "$HOSTS/$1" || exit 255
case "$1 $2" in
  127.0.0.2*exec*) [ -e lost ] || { touch lost; exit 255; };;
esac
exec sh -c "$2"
"""


def launch(workdir, folder):
  """`gen-jax launch` on four hosts that are folders here: exit code, stdout, stderr."""
  for name, text in {"ssh": SSH, "rsync": "#!/bin/sh\nexit 0\n"}.items():
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
  env = {
    **environment(workdir, 4),
    "PATH": f"{folder}:{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    "HOSTS": str(folder / "hosts"),
  }
  words = [
    *(sys.executable, "-m", "gen_jax.cli.main", "launch", "--on=ssh", "--json"),
    *("--hosts=localhost,127.0.0.1,127.0.0.2,127.0.0.3", f"--port={free_port()}"),
    *(f"--python={sys.executable}", "--retries=1", "--", "train"),
    *(f"--config={ROOT}/configs/lm/pydoc.py:smoke", *WORDS[1:], f"--workdir={workdir}"),
  ]
  done = subprocess.run(
    words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
  )
  return done.returncode, done.stdout, done.stderr


def assert_same(found, whole):
  """To 1e-6 for ten steps, to 1e-5 beyond: what sums differ by adds up.

  Over devices they are added in another order than over processes.
  """
  for step, loss in found.items():
    assert loss == pytest.approx(whole[step], abs=1e-6 if step <= 10 else 1e-5), step


@pytest.mark.long
def test_killed_with_two_processes_and_resumed_by_launch_with_four(whole, tmp_path):
  """The same batches in the same order, each once: the losses are those of one process.

  Twenty-two with two processes, and as many with four, from step 20 on.
  """
  workdir = tmp_path / "run"
  first, second = start(workdir, 2)
  for line in first.stdout:
    if line.startswith("step 22/"):
      second.send_signal(signal.SIGKILL)
      break
  killed = time.monotonic()
  (code, _, stderr), (_, stdout, _) = finish([first, second])
  assert time.monotonic() - killed < 20
  assert code == os.EX_TEMPFAIL and "process 1 (" in stderr and "is gone" in stderr
  assert not [line for line in stdout.splitlines() if not line.startswith("[Gloo]")]
  before = losses(workdir)
  assert set(before) >= set(range(1, 23))
  code, stdout, stderr = launch(workdir, tmp_path)
  assert code == 0, stderr
  assert json.loads(stdout.splitlines()[-1])["starts"] == 2
  assert stdout.count(f"resuming {workdir} from step") == 1  # the log of process 0
  after = losses(workdir)
  assert list(after) == list(range(1, STEPS + 1))
  for found in (before, after):
    assert_same(found, whole)


@pytest.mark.long
def test_token_stores_are_read_alike_by_one_two_and_four_processes(tmp_path):
  """A mixture that changes, over several epochs; killed with two, resumed with four."""
  draw, paths = np.random.default_rng(0), []
  for name, sizes in (("a", (700, 900, 1000)), ("b", (800, 700))):
    shard = [draw.integers(97, 123, size) for size in sizes]
    paths.append(str(made.of_shards(tmp_path / name, {"train": [shard]})))
  source = {"name": "mixture", "paths": tuple(paths), "weights": (3.0, 1.0)}
  source["changes"] = ((25, 1.0, 3.0),)
  words = (
    f"--config.data.source={source}",
    f"--config.data.tokenizer={{'name': 'file', 'path': '{paths[0]}/tokenizer'}}",
  )
  ((code, _, stderr),) = finish(start(tmp_path / "one", 1, *words))
  assert code == 0, stderr
  first, second = start(tmp_path / "run", 2, *words)
  for line in first.stdout:
    if line.startswith("step 22/"):
      second.send_signal(signal.SIGKILL)
      break
  assert finish([first, second])[0][0] == os.EX_TEMPFAIL
  ended = finish(start(tmp_path / "run", 4, *words))
  assert [code for code, *_ in ended] == [0] * 4, ended
  found = losses(tmp_path / "run")
  assert list(found) == list(range(1, STEPS + 1))
  assert_same(found, losses(tmp_path / "one"))


def test_told_to_stop_one_process_stops_all_at_one_step(whole, tmp_path):
  """Of two, whose losses until then are those of one as well."""
  workdir = tmp_path / "run"
  first, other = start(workdir, 2, "--config.train.num_steps=2000")
  for line in first.stdout:
    if line.startswith("step 20/"):
      other.send_signal(signal.SIGTERM)
      break
  ended = finish([first, other])
  assert [code for code, *_ in ended] == [os.EX_TEMPFAIL] * 2, ended
  assert "interrupted at step" in ended[0][1]
  found = losses(workdir)
  assert_same({i: found[i] for i in range(1, 21)}, whole)


def test_a_process_that_never_starts_is_named(tmp_path):
  began = time.monotonic()
  alone = start(tmp_path / "run", 2, "--host_timeout=2", indices=[0])
  ((code, stdout, stderr),) = finish(alone)
  assert time.monotonic() - began < 60
  assert (code, stdout) == (2, "") and len(stderr.splitlines()) == 1
  assert "process 1 of 2 did not come" in stderr
  assert not (tmp_path / "run").exists()


WAITS = """
from gen_jax.cli import hosts, main
hosts._PATIENCE = 0.3
main.main()
"""
STANDS = """
import time
from gen_jax.cli import hosts, main
beats = iter([hosts.ProcessGroup.heartbeat] * 5)
hosts.ProcessGroup.heartbeat = lambda g: next(beats, lambda _: time.sleep(1e4))(g)
main.main()
"""


@pytest.mark.long
def test_a_process_that_stands_still_is_named(tmp_path):
  """Process 1 lives, and does not come to its sixth step; process 0 waits in there."""
  workdir = tmp_path / "run"
  waits = start(workdir, 2, indices=[0], program=("-c", WAITS))
  port = next(w for w in waits[0].args if w.startswith("--coordinator="))
  stands = start(workdir, 2, port, indices=[1], program=("-c", STANDS))
  (code, _, stderr), (other, _, says) = finish([*waits, *stands])
  assert (code, other) == (os.EX_TEMPFAIL, os.EX_TEMPFAIL)
  assert "error: process 1 (" in stderr and "waiting for 15 s; start all" in stderr
  assert "error: process 0 (" in says and "is gone; start all again" in says


@pytest.mark.long
def test_what_stops_one_process_stops_the_other_and_says_why(tmp_path):
  """Process 1 is given a workdir that process 0 does not see."""
  (tmp_path / "b").mkdir()
  words = ("--host_timeout=30",)
  port_owner = start(tmp_path / "a" / "run", 2, *words, indices=[0])
  port = next(w for w in port_owner[0].args if w.startswith("--coordinator="))
  other = start(tmp_path / "b" / "run", 2, *words, port, indices=[1])
  (code_a, _, stderr_a), (code_b, _, stderr_b) = finish([*port_owner, *other])
  assert (code_a, code_b) == (2, 2)
  assert "file system that all hosts share" in stderr_b
  assert "process 1 of 2 did not come" in stderr_a  # it could not prove to be one
  assert "file system that all hosts share" in stderr_a
