"""Groups of arms that differ in numbers and seeds alone, each group in one process.

A group's process is `gen-jax together FILE`: FILE lists configs and folders, and next
to it the process writes what has become of each arm. Arms that end in no group (of
another structure than all others, started from other weights, apart) are left to
`engine.run`.
"""

import dataclasses
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gen_jax.runs import together
from gen_jax.sweeps import engine, space
from gen_jax.system import files, processes

FOLDER = "groups"
LEFT = ("apart", "failed")  # to be run alone


@dataclasses.dataclass(eq=False)
class _Running:
  arms: list[space.Arm]
  process: processes.Process
  slot: Any
  file: pathlib.Path
  log: pathlib.Path


def ended(file: pathlib.Path, number: int) -> pathlib.Path:
  """Where the process of a group writes what has become of its arm `number`."""
  return file.with_name(f"{file.stem}-{number}.json")


def split(arms: Sequence[space.Arm], jobs: int) -> list[list[space.Arm]]:
  """Groups of at least two arms, those of one structure shared among `jobs`."""
  alike: dict[str, list[space.Arm]] = {}
  for arm in arms:
    if not arm.config.get("init_from"):
      alike.setdefault(together.structure(arm.config), []).append(arm)
  found = []
  for some in alike.values():
    num = min(jobs, len(some) // 2)
    found += [some[i::num] for i in range(num)]
  return found


def run(
  arms: Sequence[space.Arm],
  home: pathlib.Path,
  words: Sequence[str],
  jobs: int,
  mode: str | None,
  done: Sequence[str],
  until: int | None = None,
) -> Iterator[tuple[space.Arm, dict[str, Any]]]:
  """Trains arms that are not done in groups; yields each as it ends.

  Args:
    words: of the command that trains a group.
    mode: of `together.MODES`; None: each group measures and chooses.
    jobs, done: see `engine.run`.
    until: the step at which each run stops, if before its end.
  """
  known = engine.states(home)
  waiting = split(engine.left(arms, known, done), jobs)
  if not waiting:
    return
  how = {"mode": mode, "until": until}
  place = engine.Local()
  free = place.slots(jobs)
  running: list[_Running] = []
  try:
    while waiting or running:
      while waiting and free:
        some, slot = waiting.pop(0), free.pop()
        running.append(_start(some, home, words, how, place, slot))
      for one in [*running]:
        is_over = one.process.poll() is not None
        for arm, state in _new(one, known, is_over):
          known[arm.sha256] = state
          engine.note(home, known)
          if state["status"] not in LEFT:
            yield arm, state
        if is_over:
          engine.keep(one.log, home)
          running.remove(one)
          free.append(one.slot)
      time.sleep(0.05)
  finally:
    processes.stop([one.process for one in running])


def _start(arms, home, words, how, place, slot) -> _Running:
  tag = files.value_sha256([arm.sha256 for arm in arms])[:8]
  file = engine.desk(home, FOLDER) / f"{tag}.json"
  for i in range(len(arms)):
    ended(file, i).unlink(missing_ok=True)
  listed = [
    {"config": arm.config, "workdir": str(engine.workdir(home, arm))} for arm in arms
  ]
  files.write_json(file, files.sealed({**how, "runs": listed}))
  log = engine.desk(home, engine.LOGS) / f"group-{tag}.txt"
  process = place.start(slot, [*words, str(file)], log)
  return _Running([*arms], process, slot, file, log)


def _new(
  one: _Running, known: Mapping[str, Any], is_over: bool
) -> Iterator[tuple[space.Arm, dict[str, Any]]]:
  """Arms that have ended since the last call, with what they have come to."""
  code = one.process.poll()
  for i, arm in enumerate(one.arms):
    if arm is None:
      continue
    path = ended(one.file, i)
    if path.exists():
      found = together.Outcome(**files.read_json(path))
    elif is_over:
      status = "interrupted" if engine.CODES.get(code) == "interrupted" else "failed"
      line = f"its group ended with exit code {code}"
      found = together.Outcome(status, line, 0.0, None)
    else:
      continue
    one.arms[i] = None
    state = engine.state(arm, known, found.status, found.secs, found.line)
    yield arm, {**state, "together": found.mode}


def read(file: pathlib.Path) -> tuple[str | None, list[together.Arm]]:
  """What `_start` wrote: the mode and the runs."""
  found = files.read_sealed(file)
  return found["mode"], [
    together.Arm(
      run["config"], files.path(run["workdir"], "workdir"), found.get("until")
    )
    for run in found["runs"]
  ]


def write_ended(file: pathlib.Path, number: int, outcome: together.Outcome) -> None:
  """Says what has become of an arm."""
  files.write_json(ended(file, number), dataclasses.asdict(outcome))
