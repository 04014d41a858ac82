"""Commands as forked processes: gen_jax is imported once, no device is touched before.

A compiled step can differ in its last bit between a forked and a started process, so
what is compared bit for bit is started in the same way.
"""

import dataclasses
import os
import pathlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Ended:
  """A process that is no more: exit code (negative: a signal), what it said, how long.

  A code of None is a process that had to be killed: it hung.
  """

  code: int | None
  out: str
  err: str
  secs: float

  @property
  def is_clean(self) -> bool:
    """No trace and no internal error."""
    said = self.out + self.err
    return "Traceback" not in said and self.code not in (70, 1, 120, -11, -6)

  def line(self) -> str:
    """The last line of stderr, for a report."""
    return (self.err.strip().splitlines() or [f"code {self.code}"])[-1][:300]


class Process:
  """A forked child that runs one command of gen-jax, or any function."""

  def __init__(self, body: Callable[[], int], env: Mapping[str, str], at: pathlib.Path):
    at.mkdir(parents=True, exist_ok=True)
    self._out, self._err = at / "out.txt", at / "err.txt"
    self._began, self._code = time.monotonic(), None
    sys.stdout.flush()
    sys.stderr.flush()
    self.pid = os.fork()
    if self.pid == 0:
      os._exit(_child(body, env, self._out, self._err))

  def send(self, number: int) -> None:
    """Sends a signal, if it still lives."""
    if self.poll() is None:
      os.kill(self.pid, number)

  def poll(self) -> int | None:
    """The exit code, if it has ended."""
    if self._code is None:
      pid, status = os.waitpid(self.pid, os.WNOHANG)
      if pid:
        self._code = os.waitstatus_to_exitcode(status)
    return self._code

  def wait(self, secs: float) -> Ended:
    """Waits for the end; after `secs` it is killed, and hung."""
    deadline = time.monotonic() + secs
    while self.poll() is None and time.monotonic() < deadline:
      time.sleep(0.01)
    code = self.poll()
    if code is None:
      os.kill(self.pid, signal.SIGKILL)
      os.waitpid(self.pid, 0)
    out, err = (path.read_text(errors="replace") for path in (self._out, self._err))
    return Ended(code, out, err, time.monotonic() - self._began)


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SIGNALS += (signal.SIGUSR1, signal.SIGUSR2)


def hear_signals() -> None:
  """In a new process: those that nohup or a shell has it ignore, too."""
  for number in SIGNALS:
    signal.signal(number, signal.SIG_DFL)
  signal.signal(signal.SIGINT, signal.default_int_handler)


def _child(body, env, out: pathlib.Path, err: pathlib.Path) -> int:
  hear_signals()
  for path, number in ((out, 1), (err, 2)):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  sys.stdout = open(1, "w", buffering=1, closefd=False)
  sys.stderr = open(2, "w", buffering=1, closefd=False)
  os.environ.update(env)
  os.chdir(ROOT)
  try:
    return body()
  except SystemExit as stop:
    return stop.code or 0
  except BaseException:
    traceback.print_exc()
    return 1


def command(words: Sequence[object]) -> Callable[[], int]:
  """The body of a process that runs `gen-jax WORDS`."""

  def body() -> int:
    from gen_jax.cli import main

    main.main([str(word) for word in words])
    return 0

  return body


def preload() -> None:
  """Imports what commands import, and nothing that touches a device."""
  import importlib

  from gen_jax.cli import main

  for name in (*main.COMMANDS, "sample"):
    importlib.import_module(f"gen_jax.cli.{name}")
  import tensorboardX  # noqa: F401


PATIENCE = 20.0  # after a signal, before it is counted as never ending
now = time.monotonic


def pause(process: Process, secs: float) -> None:
  """Waits, or until the process ends."""
  deadline = now() + secs
  while process.poll() is None and now() < deadline:
    time.sleep(0.005)


def tell(process: Process, number: int) -> tuple[Ended, float]:
  """Sends a signal; how the process ended, and how many seconds later."""
  process.send(number)
  began = now()
  ended = process.wait(PATIENCE)
  return ended, now() - began
