"""Trials, how they end, and how many ran: seeded, counted, kept."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

GOOD = ("same", "said", "refused", "accepted", "skipped")
_LIMIT_SECS = 1200.0  # of a trial that goes through processes of its own


class Outcome(NamedTuple):
  """How a trial ended: one of GOOD, or what went wrong, and in which words."""

  kind: str
  detail: str = ""


@dataclasses.dataclass(frozen=True)
class Trial:
  """One fault.

  Attributes:
    group: the row of the table it counts in.
    name: says the fault.
    run: does it in a new folder.
    limit: seconds after which the trial counts as hung.
  """

  group: str
  name: str
  run: Callable[[pathlib.Path], Outcome]
  limit: float = _LIMIT_SECS


class Record(NamedTuple):
  """What is kept of a trial."""

  campaign: str
  index: int
  group: str
  name: str
  kind: str
  detail: str


def run(
  campaign: str, trials: Iterator[Trial], num: int, folder: pathlib.Path, jobs: int
) -> list[Record]:
  """The first `num` trials, `jobs` at a time, each worker a forked process.

  A worker that hangs or dies in a trial is replaced, and the trial counted.
  """
  chosen = [trial for trial, _ in zip(trials, range(num), strict=False)]
  shards = [_Shard(campaign, chosen, i, jobs, folder) for i in range(jobs)]
  while not all([shard.is_done() for shard in shards]):  # each starts its own worker
    time.sleep(0.05)
  records = [record for shard in shards for record in shard.records()]
  return sorted(records, key=lambda record: record.index)


class _Shard:
  """Every `jobs`-th trial in a worker; what it found comes through a file."""

  def __init__(self, campaign, trials: Sequence[Trial], first, jobs, folder):
    self._campaign, self._trials, self._folder = campaign, trials, folder
    self._todo = list(range(first, len(trials), jobs))
    self._file = folder / f"{campaign}-{first}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    self._file.write_text("")
    self._pid = None

  def records(self) -> list[Record]:
    lines = self._file.read_text().splitlines()
    return [Record(**json.loads(line)) for line in lines]

  def is_done(self) -> bool:
    """Starts what is left where there is no worker; whether nothing is."""
    found = self.records()
    at = len(found)
    if self._pid is not None:
      pid, _ = os.waitpid(self._pid, os.WNOHANG)
      if not pid and at < len(self._todo):
        if at != self._at:
          self._at, self._since = at, time.monotonic()
        trial = self._trials[self._todo[at]]
        if time.monotonic() - self._since > trial.limit:
          self._end_worker()
          self._note(at, Outcome("hang", f"over {trial.limit:g} s"))
        return False
      if not pid:
        os.waitpid(self._pid, 0)
      elif at < len(self._todo):  # it died
        self._note(at, Outcome("crash", "the process died"))
      self._pid = None
      return False
    if at >= len(self._todo):
      return True
    self._at, self._since = at, time.monotonic()
    sys.stdout.flush()
    self._pid = os.fork()
    if self._pid == 0:
      os.setpgid(0, 0)
      self._work(at)
      os._exit(0)
    return False

  def _end_worker(self) -> None:
    os.killpg(self._pid, signal.SIGKILL)
    os.waitpid(self._pid, 0)
    self._pid = None

  def _work(self, at: int) -> None:
    for i in range(at, len(self._todo)):
      folder = self._folder / f"{self._campaign}-{self._todo[i]}"
      try:
        outcome = self._trials[self._todo[i]].run(folder)
      except BaseException:
        outcome = Outcome("harness", traceback.format_exc()[-600:])
      if outcome.kind in GOOD:
        shutil.rmtree(folder, ignore_errors=True)
      self._note(i, outcome)

  def _note(self, at: int, outcome: Outcome) -> None:
    index = self._todo[at]
    trial = self._trials[index]
    record = Record(self._campaign, index, trial.group, trial.name, *outcome)
    with self._file.open("a") as file:
      file.write(json.dumps(record._asdict()) + "\n")
    if outcome.kind not in GOOD:
      print(f"  {record.campaign} {index} {record.group}: {record.name}: {outcome}")


def table(counts: Mapping[tuple[str, str, str], int]) -> str:
  """Counts by (campaign, group, outcome), as Markdown."""
  kinds = [k for k in GOOD if any(key[2] == k for key in counts)]
  kinds += sorted({key[2] for key in counts} - set(GOOD))
  lines = [f"| faults | in | {' | '.join(kinds)} |", "|---|---|" + "---|" * len(kinds)]
  for campaign, group in dict.fromkeys(key[:2] for key in counts):
    row = [str(counts.get((campaign, group, kind), "") or "") for kind in kinds]
    lines.append(f"| {campaign} | {group} | {' | '.join(row)} |")
  return "\n".join(lines)
