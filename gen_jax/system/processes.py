"""Processes that this one starts, and that end when it ends in any way."""

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Protocol

# In a process of its own: JAX's threads forbid Python between fork and exec. 1 is
# PR_SET_PDEATHSIG of Linux.
_WRAPPER = """
import ctypes, os, signal, sys
os.sched_setaffinity(0, map(int, sys.argv[1].split(",")))
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[2]):
  sys.exit(os.EX_TEMPFAIL)
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Process(Protocol):
  """A command under way, as `subprocess.Popen` shows it."""

  def poll(self) -> int | None:
    """Its exit code; None while it runs."""

  def terminate(self) -> None:
    """Tells it to save and stop."""

  def wait(self) -> int:
    """Its exit code, when it has ended."""


def wrapped(cores: Iterable[int]) -> list[str]:
  """Words before a command that keep it to these cores and end it with this process."""
  listed = ",".join(map(str, cores))
  return [sys.executable, "-S", "-c", _WRAPPER, listed, str(os.getpid())]


def stop(processes: Sequence[Process]) -> None:
  """Tells all to save and stop, and waits for them."""
  for process in processes:
    process.terminate()
  for process in processes:
    process.wait()
