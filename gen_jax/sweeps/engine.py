"""Arms as processes of this machine, each in a folder of its own, until all are done.

What an arm has come to stands in `arms.json` of the sweep's folder, sealed and replaced
whole. An arm's folder is an ordinary workdir, so that a killed arm, or a killed driver,
goes on where it was. Exit codes of an arm's process:

    0                        finished
    os.EX_DATAERR (65)       diverged: a result, never tried again
    os.EX_TEMPFAIL (75)      told to stop
    anything else            failed: tried again, `ATTEMPTS` times in all
"""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gen_jax.sweeps import space
from gen_jax.system import files

ATTEMPTS = 3
NAME = "arms.json"
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
CODES = {0: "finished", os.EX_DATAERR: "diverged", os.EX_TEMPFAIL: "interrupted"}

# (arm, workdir) -> the words of the process that trains it.
Command = Callable[[space.Arm, pathlib.Path], Sequence[str]]


def workdir(home: pathlib.Path, arm: space.Arm) -> pathlib.Path:
  """The folder of an arm, found by its hash: names change when a sweep grows."""
  tag = arm.sha256[:8]
  found = [path for path in home.glob(f"*-{tag}") if path.is_dir()]
  return found[0] if found else home / f"{arm.name}-{tag}"


def states(home: pathlib.Path) -> dict[str, dict[str, Any]]:
  """{sha256 of an arm: status, starts, secs and the last line of its errors}.

  Raises:
    InputError: a damaged file.
  """
  path = home / NAME
  return files.read_sealed(path)["arms"] if path.exists() else {}


def note(home: pathlib.Path, known: Mapping[str, Any]) -> None:
  """Writes what `states` reads."""
  files.write_json(home / NAME, files.sealed({"arms": known}))


@dataclasses.dataclass
class _Running:
  arm: space.Arm
  process: subprocess.Popen
  cores: tuple[int, ...]
  log: pathlib.Path
  began: float


def run(
  arms: Sequence[space.Arm],
  home: pathlib.Path,
  command: Command,
  jobs: int,
  done: Sequence[str],
) -> Iterator[tuple[space.Arm, dict[str, Any]]]:
  """Runs the arms that are not done, `jobs` at a time; yields each as it ends.

  The cores of this machine are shared evenly. When the driver ends, in any way, its
  arms end too.

  Args:
    home: the sweep's folder.
    done: statuses that need no run.
  """
  known = states(home)
  todo = [arm for arm in arms if known.get(arm.sha256, {}).get("status") not in done]
  home.mkdir(parents=True, exist_ok=True)
  free = shares(sorted(os.sched_getaffinity(0)), jobs)
  running: list[_Running] = []
  attempts = {arm.sha256: 0 for arm in todo}
  try:
    while todo or running:
      while todo and free:
        arm = todo.pop(0)
        attempts[arm.sha256] += 1
        running.append(_start(arm, home, command, free.pop()))
      ended = [one for one in running if one.process.poll() is not None]
      for one in ended:
        running.remove(one)
        free.append(one.cores)
        state = _ended(one, known.get(one.arm.sha256, {}))
        known[one.arm.sha256] = state
        note(home, known)
        if state["status"] == "failed" and attempts[one.arm.sha256] < ATTEMPTS:
          todo.append(one.arm)
          continue
        yield one.arm, state
      if not ended:
        time.sleep(0.05)
  finally:
    for one in running:
      one.process.send_signal(signal.SIGTERM)
    for one in running:
      one.process.wait()


def shares(cores: Sequence[int], jobs: int) -> list[tuple[int, ...]]:
  """The cores of each of `jobs` processes; all have one at least."""
  return [tuple(cores[i::jobs]) or (cores[i % len(cores)],) for i in range(jobs)]


def wrapped(cores: Sequence[int]) -> list[str]:
  """Words before a command that keep it to these cores and end it with this process."""
  listed = ",".join(map(str, cores))
  return [sys.executable, "-S", "-c", _WRAPPER, listed, str(os.getpid())]


def _start(arm, home, command, cores) -> _Running:
  folder = workdir(home, arm)
  log = home / "logs" / f"{folder.name}.txt"
  log.parent.mkdir(exist_ok=True)

  with log.open("ab") as out:
    process = subprocess.Popen(
      [*wrapped(cores), *command(arm, folder)],
      stdin=subprocess.DEVNULL,
      stdout=out,
      stderr=out,
    )
  return _Running(arm, process, cores, log, time.monotonic())


def _ended(one: _Running, before: Mapping[str, Any]) -> dict[str, Any]:
  status = CODES.get(one.process.returncode, "failed")
  lines = files.lines(files.decode(one.log.read_bytes(), str(one.log)))
  return {
    "name": one.arm.name,
    "status": status,
    "starts": before.get("starts", 0) + 1,
    "secs": round(before.get("secs", 0.0) + time.monotonic() - one.began, 1),
    "line": "" if status == "finished" else next(iter(reversed(lines)), ""),
  }
