"""Told to stop in any phase: code 75 within seconds, and nothing is lost."""

import json
import os
import pathlib
import pty
import signal
import subprocess
import sys
import time

import pytest

from gen_jax.cli import main

ROOT = pathlib.Path(__file__).parents[2]
# A step of Python's that hears no signals: nothing of it comes back to the interpreter.
# It is announced when it has surely begun: before, the main thread still hears them.
BLOCKS = """
import hashlib, sys, threading
def block(*args, **kwargs):
  threading.Timer(0.5, print, ["blocks"], {"flush": True}).start()
  hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""
PROGRAM = """
from gen_jax.cli import main
main.console()
"""
IN_EVALUATION = f"""{BLOCKS}
from gen_jax.train import evaluators
call = evaluators.LossEvaluator.__call__
def second(self, weights, frozen, seen=[]):
  seen.append(0)
  return block() if len(seen) == 2 else call(self, weights, frozen)
evaluators.LossEvaluator.__call__ = second
{PROGRAM}"""
IN_COMPILATION = f"""{BLOCKS}
import types
from gen_jax.train import step
step.compile_step = lambda *args: types.SimpleNamespace(lower=block)
{PROGRAM}"""
IN_DATA = f"""
import time
from gen_jax import experiment
def wait(*args):
  print("waits", flush=True)
  time.sleep(60)
experiment.Experiment.pipeline = wait
{PROGRAM}"""
IN_ASYNCIO = f"""
import asyncio
from gen_jax import experiment
def turn():
  print("waits", flush=True)
  while True:
    pass
def wait(*args):  # a callback in the main thread
  loop = asyncio.new_event_loop()
  loop.call_soon(turn)
  loop.run_forever()
experiment.Experiment.pipeline = wait
{PROGRAM}"""
IN_STEP = f"""
import time
from gen_jax.system import signals
from gen_jax.train import writers
write = writers.Terminal.write
def wait(self, step, values):
  write(self, step, values)
  while step == 5 and not signals.asked():
    time.sleep(0.01)
writers.Terminal.write = wait
{PROGRAM}"""
IN_IMPORTS = (
  """
import sys
class Finder:
  def find_spec(self, name, path, target=None):
    if name == "jax":
      print("imports", flush=True)
sys.meta_path.insert(0, Finder())
"""
  + PROGRAM
)
WORDS = (
  "--config=configs/lm/pydoc.py:smoke",
  "--config.task.model.max_length=2048",
  "--config.train.num_steps=8",
  "--config.train.log_every=1",
  "--config.train.save_every=100",
  "--config.train.health_check=False",
  "--config.evaluators.validation.every=3",
)


def hear():
  """Signals do what they usually do, also under nohup."""
  signal.signal(signal.SIGINT, signal.default_int_handler)
  signal.signal(signal.SIGHUP, signal.SIG_DFL)


def start(*words, program=PROGRAM, **pipes):
  env = {**os.environ, "JAX_PLATFORMS": "cpu"}
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **pipes}
  return subprocess.Popen(
    [sys.executable, "-c", program, *map(str, words)],
    cwd=ROOT,
    env=env,
    restore_signals=True,
    preexec_fn=hear,
    **pipes,
  )


def train(workdir, *words, **options):
  return start("train", *WORDS, f"--workdir={workdir}", *words, **options)


def stop(process, line, number):
  """Sends a signal when `line` begins a line; exit code, stderr."""
  for said in process.stdout:
    if said.startswith(line):
      break
  else:
    raise AssertionError(process.communicate())
  process.send_signal(number)
  sent = time.monotonic()
  try:
    _, stderr = process.communicate(timeout=60)
  finally:
    process.kill()
  assert time.monotonic() - sent < 10
  return process.returncode, stderr


def rows(workdir):
  """Rows of metrics without what depends on time."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  timed = ("tokens_per_sec", "mfu", "mfu_causal", "data_wait", "time", "crc32")
  kept = [{k: v for k, v in json.loads(r).items() if k not in timed} for r in lines]
  return sorted(kept, key=lambda row: (row["step"], *row))  # not by what came first


def hashes(workdir):
  return main.run(["inspect", "--workdir", str(workdir)])["sha256"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that nothing interrupts."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  process = train(workdir)
  assert process.wait(timeout=300) == 0, process.communicate()
  return workdir


@pytest.mark.parametrize(
  "program, line, number",
  [
    (IN_STEP, "step 5/", signal.SIGHUP),
    pytest.param(IN_COMPILATION, "blocks", signal.SIGTERM, marks=pytest.mark.long),
    pytest.param(IN_EVALUATION, "blocks", signal.SIGUSR1, marks=pytest.mark.long),
  ],
)
def test_stopped_and_resumed_equals_uninterrupted(
  whole, tmp_path, program, line, number
):
  workdir = tmp_path / "run"
  code, stderr = stop(train(workdir, program=program), line, number)
  assert code == os.EX_TEMPFAIL and "Traceback" not in stderr, stderr
  if program == IN_EVALUATION:  # of step 3, which is saved all the same
    assert (workdir / "checkpoints" / "3").exists()
  process = train(workdir)
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  assert program == IN_COMPILATION or "from step 0" not in out
  assert hashes(workdir) == hashes(whole)
  assert rows(workdir) == rows(whole)


@pytest.mark.parametrize(
  "program, line", [(IN_IMPORTS, "imports"), (IN_DATA, "waits"), (IN_ASYNCIO, "waits")]
)
@pytest.mark.parametrize(
  "number", [signal.SIGINT, pytest.param(signal.SIGUSR2, marks=pytest.mark.long)]
)
def test_stopped_before_anything_is_trained_leaves_nothing(
  tmp_path, program, line, number
):
  code, stderr = stop(train(tmp_path / "run", program=program), line, number)
  assert (code, os.listdir(tmp_path)) == (os.EX_TEMPFAIL, [])
  assert len(stderr.splitlines()) == 1 and "stopped" in stderr


def test_the_second_signal_ends_at_once(tmp_path):
  """While the first waits for what cannot be interrupted."""
  process = train(tmp_path / "run", program=IN_COMPILATION)
  assert any(line.startswith("blocks") for line in process.stdout)
  process.send_signal(signal.SIGINT)
  time.sleep(0.5)
  sent = time.monotonic()
  process.send_signal(signal.SIGINT)
  _, stderr = process.communicate(timeout=300)
  assert time.monotonic() - sent < 2
  assert (process.returncode, stderr) == (130, "gen-jax: stopped at once\n")


def test_what_is_ignored_stays_ignored(tmp_path):
  """As under nohup."""
  program = f"import signal; signal.signal(1, signal.SIG_IGN){PROGRAM}"
  process = train(tmp_path / "run", program=program)
  for said in process.stdout:
    if said.startswith("step 2/"):
      process.send_signal(signal.SIGHUP)
  assert process.wait(timeout=300) == 0


def test_ctrl_c_stops_the_answer_and_not_the_talk(whole):
  """As a user gives it, in a terminal; ten times, at any moment."""
  terminal, other = pty.openpty()
  words = ("sample", "--workdir", whole, "--interactive", "--max_tokens=4000")
  words += ("--temperature=0",)  # no end of text by chance
  process = start(*words, stdin=other, stdout=other, stderr=other)
  os.close(other)

  def until(*ends):
    said = b""
    while not said.endswith(ends):
      said += os.read(terminal, 1)
    return said.decode(errors="replace")

  until(b"> ")
  for i in range(10):
    os.write(terminal, b"hello\n")
    until(b"hello\r\n")
    os.read(terminal, 1)  # of the answer
    time.sleep(0.02 * i)
    process.send_signal(signal.SIGINT)
    assert "[stopped]" in until(b"> ")
  os.write(terminal, b"/exit\n")
  assert process.wait(timeout=20) == 0
  os.close(terminal)


CLOSED = {
  "2>&-": 0,
  ">&-": 0,
  ">&- 2>&-": 0,
  ">/dev/full": 2,
  ">/dev/full 2>&1": 2,
  "<&- >&- 2>&-": 0,
}


@pytest.mark.parametrize(
  "closed",
  [
    pytest.param(c, marks=[pytest.mark.long] * (i in (0, 1, 3)))
    for i, c in enumerate(CLOSED)
  ],
)
def test_streams_that_are_closed_or_full(whole, closed):
  argv = f"-m gen_jax.cli.main inspect --workdir {whole} --json"
  done = subprocess.run(
    ["sh", "-c", f"{sys.executable} {argv} {closed}"], cwd=ROOT, capture_output=True
  )
  assert done.returncode == CLOSED[closed], done
  assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr
  assert len(done.stderr.splitlines()) <= 1


def test_what_should_not_happen_is_one_line_and_a_file_to_send(tmp_path):
  """And not a trace that a user takes for one's own mistake."""
  program = f"""
from gen_jax.cli import hosts
def join(*args):
  raise RuntimeError("two\\nlines")
hosts.join = join
{PROGRAM}"""
  process = train(tmp_path / "run", program=program)
  _, err = process.communicate(timeout=300)
  assert process.returncode == os.EX_SOFTWARE
  (line,) = err.splitlines()
  assert "internal error: RuntimeError: two lines; please send" in line
  file = pathlib.Path(line.split()[-1])
  assert file.stat().st_mode & 0o777 == 0o600
  assert "Traceback" in file.read_text() and "--workdir=" in file.read_text()
  file.unlink()
