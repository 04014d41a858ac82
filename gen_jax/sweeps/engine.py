"""Arms as processes, each in a folder of its own, until all are done.

What an arm has come to stands in `arms.json` of the sweep's folder, sealed and replaced
whole. An arm's folder is an ordinary workdir, so that a killed arm, or a killed driver,
goes on where it was. Where the processes run is a `Place`: this machine (`Local`), or
what `remote` reaches. Exit codes of an arm's process:

    0                        finished
    os.EX_DATAERR (65)       diverged: a result, never tried again
    os.EX_TEMPFAIL (75)      told to stop
    anything else            failed: tried again, `ATTEMPTS` times in all
"""

import dataclasses
import os
import pathlib
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from gen_jax.errors import InputError
from gen_jax.sweeps import chips, space
from gen_jax.system import copies, files, processes

ATTEMPTS = 3
NAME = "arms.json"
LOGS = "logs"
DONE = ("finished", "diverged")  # an arm of these is not run again
_STATE = {"status": str, "starts": int, "secs": int | float}
CODES = {0: "finished", os.EX_DATAERR: "diverged", os.EX_TEMPFAIL: "interrupted"}

# (arm, workdir) -> the words of the process that trains it.
Command = Callable[[space.Arm, pathlib.Path], Sequence[str]]


def workdir(home: pathlib.Path, arm: space.Arm) -> pathlib.Path:
  """The folder of an arm, found by its hash: names change when a sweep grows."""
  tag = arm.sha256[:8]
  found = [path for path in home.glob(f"*-{tag}") if path.is_dir()]
  return found[0] if found else home / f"{arm.name}-{tag}"


def desk(home: pathlib.Path, name: str) -> pathlib.Path:
  """A folder on this disk for what processes of this machine write.

  It is in the sweep's folder, unless that is in a bucket; then it ends with this
  process.
  """
  found = home / name if files.is_local(home) else copies.scratch(name)
  found.mkdir(parents=True, exist_ok=True)
  return found


def states(home: pathlib.Path) -> dict[str, dict[str, Any]]:
  """{sha256 of an arm: status, starts, secs and the last line of its errors}.

  An arm that has ended and whose folder is gone is not there: it has to run again.

  Raises:
    InputError: a damaged file.
  """
  path = home / NAME
  found = files.read_sealed(path).get("arms") if path.exists() else {}
  if not isinstance(found, dict) or not all(
    files.fits(v, _STATE) for v in found.values()
  ):
    raise InputError(
      f"{path} is damaged; restore it, or delete it: what has finished is found again"
    )
  tags = {folder.name[-8:] for folder in home.iterdir()} if found else ()
  return {
    digest: one
    for digest, one in found.items()
    if one["status"] not in DONE or digest[:8] in tags
  }


def left(
  arms: Sequence[space.Arm], known: Mapping[str, Any], done: Sequence[str]
) -> list[space.Arm]:
  """The arms that are not done, by what `states` has read."""
  return [arm for arm in arms if known.get(arm.sha256, {}).get("status") not in done]


def state(
  arm: space.Arm, known: Mapping[str, Any], status: str, secs: float, line: str
) -> dict[str, Any]:
  """What an arm has come to after one more start, of `secs` seconds."""
  before = known.get(arm.sha256, {})
  return {
    "name": arm.name,
    "status": status,
    "starts": before.get("starts", 0) + 1,
    "secs": round(before.get("secs", 0.0) + secs, 1),
    "line": line,
  }


def note(home: pathlib.Path, known: Mapping[str, Any]) -> None:
  """Writes what `states` reads."""
  files.write_json(home / NAME, files.sealed({"arms": known}))


def keep(log: pathlib.Path, home: pathlib.Path) -> None:
  """Adds the log of a process that has ended to that in a sweep's bucket."""
  if not files.is_local(home) and log.exists():
    kept = home / LOGS / log.name
    before = kept.read_bytes() if kept.exists() else b""
    kept.write_bytes(before + log.read_bytes())
    log.unlink()


class Place(Protocol):
  """Where commands run."""

  def slots(self, jobs: int) -> list[Any]:
    """What each of `jobs` commands at a time is given to run in."""

  def start(
    self, slot: Any, words: Sequence[str], log: pathlib.Path
  ) -> processes.Process:
    """Starts a command; what it prints is appended to `log`."""


class Local:
  """This machine. Jobs share its cores, and its GPUs or TPU chips one by one.

  When the driver ends, in any way, its commands end too.
  """

  def slots(self, jobs: int) -> list[tuple[tuple[int, ...], dict[str, str]]]:
    """Cores and environment of each job; see `chips.environments`."""
    cores = shares(sorted(os.sched_getaffinity(0)), jobs)
    return list(zip(cores, chips.environments(chips.here(), jobs), strict=True))

  def start(self, slot, words: Sequence[str], log: pathlib.Path) -> processes.Process:
    """See `Place`."""
    cores, environment = slot
    with log.open("ab") as out:
      return subprocess.Popen(
        [*processes.wrapped(cores), *words],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        env={**os.environ, **environment},
      )


@dataclasses.dataclass
class _Running:
  arm: space.Arm
  process: processes.Process
  slot: Any
  log: pathlib.Path
  began: float


def run(
  arms: Sequence[space.Arm],
  home: pathlib.Path,
  command: Command,
  jobs: int,
  done: Sequence[str],
  place: Place | None = None,
) -> Iterator[tuple[space.Arm, dict[str, Any]]]:
  """Runs the arms that are not done, `jobs` at a time; yields each as it ends.

  Args:
    home: the sweep's folder.
    done: statuses that need no run.
    place: where they run; this machine by default.
  """
  place = place or Local()
  known = states(home)
  todo = left(arms, known, done)
  home.mkdir(parents=True, exist_ok=True)
  free = place.slots(jobs)
  running: list[_Running] = []
  attempts = {arm.sha256: 0 for arm in todo}
  try:
    while todo or running:
      while todo and free:
        arm = todo.pop(0)
        attempts[arm.sha256] += 1
        running.append(_start(arm, home, command, place, free.pop()))
      ended = [one for one in running if one.process.poll() is not None]
      for one in ended:
        running.remove(one)
        free.append(one.slot)
        known[one.arm.sha256] = found = _ended(one, known)
        keep(one.log, home)
        note(home, known)
        if found["status"] == "failed" and attempts[one.arm.sha256] < ATTEMPTS:
          todo.append(one.arm)
          continue
        yield one.arm, found
      if not ended:
        time.sleep(0.05)
  finally:
    processes.stop([one.process for one in running])


def shares(cores: Sequence[int], jobs: int) -> list[tuple[int, ...]]:
  """The cores of each of `jobs` processes; all have one at least."""
  return [tuple(cores[i::jobs]) or (cores[i % len(cores)],) for i in range(jobs)]


def _start(arm, home, command, place, slot) -> _Running:
  folder = workdir(home, arm)
  log = desk(home, LOGS) / f"{folder.name}.txt"
  process = place.start(slot, command(arm, folder), log)
  return _Running(arm, process, slot, log, time.monotonic())


def _ended(one: _Running, known: Mapping[str, Any]) -> dict[str, Any]:
  status = CODES.get(one.process.poll(), "failed")
  said = one.log.read_bytes() if one.log.exists() else b""
  lines = files.lines(said.decode(errors="replace"))
  line = "" if status == "finished" else next(iter(reversed(lines)), "")
  return state(one.arm, known, status, time.monotonic() - one.began, line)
