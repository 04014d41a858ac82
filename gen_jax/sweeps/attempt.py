"""Runs one command on a machine that a scheduler has chosen, one attempt at a time.

A scheduler starts a command again when its machine seems lost, a new driver when the
old one was killed; the first process may still be at work then. So an attempt holds a
lease on the command, under which it writes what the command came to: whoever comes
later waits, reads that, and runs nothing.

    python -m gen_jax.sweeps.attempt ENDED LOG CORES WORDS...

It imports no jax: many such processes wait.
"""

import contextlib
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from gen_jax.errors import InputError
from gen_jax.runs import lease
from gen_jax.system import files, processes, signals

# Variables of the driver that its commands get anywhere.
PASSED = ("JAX_", "XLA_", "GEN_JAX_", "PYTHONPATH")
_SECS = 0.1


def passed(environment: Mapping[str, str]) -> dict[str, str]:
  """The variables of a driver that say how to compute, not where."""
  where = ("JAX_COORDINATOR", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "GEN_JAX_HOSTS")
  return {
    name: value
    for name, value in environment.items()
    if name.startswith(PASSED) and not name.startswith(where)
  }


def code(ended: pathlib.Path) -> int | None:
  """The exit code that an attempt wrote; None: there is none yet."""
  return files.read_json(ended)["code"] if ended.exists() else None


def run(
  words: Sequence[str],
  ended: pathlib.Path,
  log: pathlib.Path,
  cores: int,
  environment: Mapping[str, str],
) -> int:
  """Exit code of a command, run here unless another attempt has run it.

  Args:
    ended: the file for the exit code, on a file system that all attempts share.
    log: what the command prints is appended there.
    cores: that it is kept to, if as many are free.
    environment: added to that of this process.
  """
  with _alone(ended, log):
    if (known := code(ended)) is not None:
      return known
    with _cores(cores) as mine, log.open("ab") as out:
      process = subprocess.Popen(
        [*processes.wrapped(mine), *words],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        env={**os.environ, **environment},
      )
      try:
        while process.poll() is None:  # Ray's way to cancel waits for bytecode
          time.sleep(_SECS)
      except BaseException:
        process.terminate()
        process.wait()
        raise
    files.write_json(ended, {"code": process.returncode})
    return process.returncode


def task(words, ended, log, cores, environment, folder) -> int:
  """`run` in a folder, with paths as text: what Ray is given."""
  os.chdir(folder)
  return run(words, pathlib.Path(ended), pathlib.Path(log), cores, environment)


@contextlib.contextmanager
def _alone(ended: pathlib.Path, log: pathlib.Path) -> Iterator[None]:
  """Waits for the lease on a command; the log says why, when the reason changes."""
  said = ""
  while True:
    held = contextlib.ExitStack()
    try:
      held.enter_context(lease.hold(ended.parent, f"{ended.stem}.lease.json"))
    except InputError as error:  # another attempt is at work, or no lease can be had
      if str(error) != said:
        said = str(error)
        with log.open("a", encoding="utf-8") as out:
          out.write(f"waiting: {said}\n")
      time.sleep(1.0)
      continue
    with held:
      yield
    return


@contextlib.contextmanager
def _cores(num: int) -> Iterator[Sequence[int]]:
  """Cores of this machine that no other attempt keeps to; all where too few are free.

  A core is taken by a lock, which ends with its process.
  """
  every = sorted(os.sched_getaffinity(0))
  folder = pathlib.Path(tempfile.gettempdir()) / f"gen-jax-cores-{os.getuid()}"
  folder.mkdir(mode=0o700, exist_ok=True)
  with contextlib.ExitStack() as held:
    taken = []
    for core in every:
      file = held.enter_context((folder / str(core)).open("ab"))
      with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        taken.append(core)
      if len(taken) == num:
        break
    yield taken if len(taken) == num else every


def _stop(number: int, frame: Any) -> NoReturn:
  """The command is told to save and stop, and so has not ended."""
  del frame
  for other in signals.ASKING:
    signal.signal(other, signal.SIG_IGN)
  sys.exit(128 + number)


def main(argv: Sequence[str]) -> None:
  """See the module's docstring; exits with 0, whatever the command came to."""
  for number in signals.ASKING:
    signal.signal(number, _stop)
  ended, log, cores, *words = argv
  run(words, pathlib.Path(ended), pathlib.Path(log), int(cores), {})


if __name__ == "__main__":
  main(sys.argv[1:])
