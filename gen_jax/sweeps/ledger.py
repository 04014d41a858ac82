"""The ledger of a sweep: results.json, from which every table and figure is made.

    format, question, config, metric, software (packages, and the code's revisions if
    they are known: "-dirty" is one with changes), hardware, and for each arm its
    overrides, status, step, value of the metric, thinned curve, seconds and starts,

sealed with a hash: an edited ledger is refused. Seeds are repetitions: arms that differ
in `seed` alone are one row of the table.
"""

import importlib.metadata
import math
import os
import pathlib
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gen_jax.runs import bill, workdir
from gen_jax.sweeps import engine, search, space, statistics
from gen_jax.system import files
from gen_jax.train import evaluators, writers
from gen_jax.types import InputError, unknown

FORMAT = 1
DONE = engine.DONE
_CURVE = 50  # points kept of an arm's curve
_ABOUT = {"question": str, "metric": str}
_ARM = {"overrides": dict, "status": str, "value": float | int | None, "curve": list}
_SEARCH = {"best": int, "edges": list, "method": str, "seed": int, "arms": list}
_SEED = int | float | str | None
AT_EDGE = "The best value of {} is at the edge of those tried."
_BEGIN, _END = "<!-- table -->", "<!-- end -->"


class Row(NamedTuple):
  """The runs of one config over its seeds.

  Attributes:
    overrides: without the seed.
    values: {seed: value of the metric} of runs that finished.
    num_diverged: runs whose loss stopped being finite, or their metric at the end.
  """

  overrides: space.Overrides
  values: dict[Any, float]
  num_diverged: int

  @property
  def interval(self) -> statistics.Interval | None:
    """Over seeds; None for fewer than two."""
    found = list(self.values.values())
    return statistics.over_seeds(found) if len(found) > 1 else None

  @property
  def mean(self) -> float:
    """NaN if no run finished."""
    found = list(self.values.values())
    return sum(found) / len(found) if found else float("nan")

  def __str__(self) -> str:
    """The mean, with its interval if there is one."""
    return str(self.interval) if self.interval else f"{self.mean:.4g}"


def curve(folder: pathlib.Path, metric: str, rows=None) -> list[tuple[int, float]]:
  """(step, value) of a metric wherever a run wrote it, in its `rows` if they are read.

  Raises:
    InputError: no row has it; names those that are there. A damaged row.
  """
  rows = writers.read_metrics(folder, whole=True) if rows is None else rows
  found = [(int(row["step"]), row[metric]) for row in rows if metric in row]
  if rows and not found:
    known = {name for row in rows for name in row} - {"step"}
    raise unknown(f"metric (of {folder})", metric, known)
  return found


def last(folder: pathlib.Path, metric: str, rows=None) -> float | None:
  """The last value of a metric; None if it is not finite. See `curve`."""
  points = curve(folder, metric, rows)
  return points[-1][1] if points and math.isfinite(points[-1][1]) else None


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
  """Evenly chosen points, the last one among them."""
  every = -(-len(points) // _CURVE) or 1
  return list(reversed(list(reversed(points))[::every]))


def _measured(folder: pathlib.Path, metric: str, status: str) -> dict[str, Any]:
  """What a ledger keeps of a metric of one arm."""
  rows = writers.read_metrics(folder, whole=True)
  points, end = curve(folder, metric, rows), max([-1, *(row["step"] for row in rows)])
  if status == "finished" and end < (workdir.latest_step(folder) or 0):
    raise InputError(
      f"{folder} has lost its metrics; delete what is left of it, and run gen-jax sweep"
      " again"
    )
  return {
    "step": points[-1][0] if points else 0,
    "value": last(folder, metric, rows) if status == "finished" else None,
    "curve": _thinned([point for point in points if math.isfinite(point[1])]),
  }


def views(ledger: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  """The ledger itself, and one with each further metric in the metric's place."""
  return [ledger] + [
    {
      **ledger,
      "metric": metric,
      "arms": [{**arm, **arm["also"][metric]} for arm in ledger["arms"]],
    }
    for metric in ledger.get("also", ())
  ]


def collect(
  about: Mapping[str, Any],
  arms: Sequence[space.Arm],
  states: Mapping[str, Mapping[str, Any]],
  workdirs: Mapping[str, pathlib.Path],
) -> dict[str, Any]:
  """The ledger of the arms that are done.

  Args:
    about: question, config, metric, and also: further metrics.
    states: {sha256: status, starts, secs} by `engine`.
    workdirs: {sha256: folder}.

  Raises:
    InputError: a metric that no evaluator writes.
  """
  entries = []
  for arm in arms:
    state = states.get(arm.sha256, {})
    if state.get("status") not in DONE:
      continue
    entry = {"name": arm.name, "overrides": {}, "sha256": arm.sha256}
    entry |= {key: state[key] for key in ("status", "starts", "secs")}
    for prefix, overrides in arm.settings:
      first, *others = (
        _measured(workdirs[arm.sha256], prefix + metric, state["status"])
        for metric in (about["metric"], *about.get("also", ()))
      )
      also = dict(zip(about.get("also", ()), others, strict=True))
      more = {"also": also} if also else {}
      entries.append(entry | {"overrides": arm.overrides | overrides} | first | more)
  trained = [workdirs[entry["sha256"]] for entry in entries]
  return {"format": FORMAT, **about, **_where(trained), "arms": entries}


def _where(trained: Sequence[pathlib.Path]) -> dict[str, Any]:
  """By what code and on what the runs in these folders were made, where they say so."""
  names = ("jax", "jaxlib", "flax", "optax", "numpy")
  said = {workdir.about(folder).get("code_revision") for folder in trained}
  kinds = {start["kind"] for folder in trained for start in bill.starts(folder)}
  found = {"revisions": sorted(said - {None}), "devices": sorted(kinds)}
  return {
    **{key: values for key, values in found.items() if values},
    "packages": {name: importlib.metadata.version(name) for name in names},
    "python": platform.python_version(),
    "cores": len(os.sched_getaffinity(0)),
  }


def write(path: pathlib.Path, ledger: Mapping[str, Any]) -> None:
  """Writes results.json, whole or not at all, with its hash."""
  files.write_json(path, files.sealed(ledger))


def read(path: pathlib.Path) -> dict[str, Any]:
  """A ledger as it was written.

  Raises:
    InputError: an edited file, one that is no ledger, or one of a newer format.
  """
  ledger = files.read_sealed(path)
  if ledger.get("format") != FORMAT:
    raise InputError(
      f"{path} has format {ledger.get('format')!r}; this version reads {FORMAT}:"
      " install the version that wrote it"
    )
  arms = ledger.get("arms")
  is_whole = files.fits(ledger, _ABOUT)
  if (found := ledger.get("search")) is not None:
    is_whole &= files.fits(found, _SEARCH) and search.are_arms(found["arms"])
  if not (is_whole and isinstance(arms, list) and all(map(_is_arm, arms))):
    raise InputError(f"{path} lacks parts of a sweep's results: record them again")
  return ledger


def _is_arm(arm: Any) -> bool:
  point = {0: int | float, 1: int | float | None}
  return (
    files.fits(arm, _ARM)
    and isinstance(arm["overrides"].get("seed"), _SEED)
    and all(isinstance(p, list) for p in arm["curve"])
    and all(files.fits(dict(enumerate(p)), point) for p in arm["curve"])
  )


def rows(ledger: Mapping[str, Any]) -> list[Row]:
  """One row for each config, seeds together, in the order of the sweep."""
  groups: dict[str, list[Mapping[str, Any]]] = {}
  for arm in ledger["arms"]:
    groups.setdefault(key(arm["overrides"]), []).append(arm)
  found = []
  for arms in groups.values():
    values = {
      arm["overrides"].get("seed"): arm["value"]
      for arm in arms
      if arm["status"] == "finished" and arm["value"] is not None
    }
    overrides = space.without_seed(arms[0]["overrides"])
    found.append(Row(overrides, values, len(arms) - len(values)))
  return found


def key(overrides: Mapping[str, Any]) -> str:
  """The same for arms that differ in their seed alone."""
  return files.value_sha256(space.without_seed(overrides))


def named(rows: Sequence[Row]) -> dict[str, Row]:
  """Rows by what sets them apart: "width=64,peak=0.001"."""
  every = space.keys([row.overrides for row in rows])
  keys = space.varied([row.overrides for row in rows])
  return {
    space.label({k: row.overrides[k] for k in keys if k in row.overrides}, every): row
    for row in rows
  }


def best(rows: Sequence[Row], metric: str) -> Row:
  """The row with the best mean.

  Raises:
    InputError: no run finished, or a metric of unknown direction.
  """
  finished = [row for row in rows if row.values]
  if not finished:
    raise InputError("no run of the sweep has finished")
  return min(finished, key=lambda row: evaluators.cost(metric, row.mean))


def compare(a: Row, b: Row) -> statistics.Difference:
  """b - a: paired over common seeds if there are at least two, else unpaired.

  Raises:
    InputError: one seed where an interval is asked for.
  """
  seeds = [seed for seed in a.values if seed in b.values]
  if len(seeds) > 1:
    pairs = [[row.values[seed] for seed in seeds] for row in (a, b)]
    return statistics.paired(*pairs)
  return statistics.unpaired(*(list(row.values.values()) for row in (a, b)))


def pvalues(rows: Sequence[Row], metric: str) -> dict[int, float]:
  """{id(row): p of its difference from the best}, adjusted for their number.

  Of rows with at least two seeds; none if the best has one.
  """
  top = best(rows, metric)
  others = [row for row in rows if row is not top and len(row.values) > 1]
  tested = others if len(top.values) > 1 else []
  adjusted = statistics.adjusted([compare(top, row).p for row in tested])
  return {id(row): p for row, p in zip(tested, adjusted, strict=True)}


def edges(rows: Sequence[Row], metric: str) -> list[str]:
  """Keys of numbers whose best value is the first or last that was tried."""
  top, found = best(rows, metric), []
  for key, value in top.overrides.items():
    tried = [row.overrides.get(key) for row in rows]
    numbers = sorted({x for x in tried if isinstance(x, int | float)})
    if len(numbers) > 2 and value in (numbers[0], numbers[-1]):
      found.append(key)
  return found


def table(ledger: Mapping[str, Any]) -> str:
  """The sweep as Markdown: a line for each config, the best one in bold.

  Columns are the keys that vary, and further metrics. p is of the metric's difference
  from the best, over common seeds where there are, adjusted for the number of lines.
  """
  found, metric = rows(ledger), ledger["metric"]
  others = [rows(view) for view in views(ledger)[1:]]
  every = space.keys([row.overrides for row in found])
  keys = space.varied([row.overrides for row in found])
  top, pvalue = best(found, metric), pvalues(found, metric)
  head = [*(space.short(key, every) for key in keys), "seeds", metric, "p"]
  head += ledger.get("also", ())
  lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
  for row, *more in zip(found, *others, strict=True):
    shown = f"**{row}**" if row is top else str(row)
    if row.num_diverged:
      shown += f" ({row.num_diverged} diverged)"
    p = f"{pvalue[id(row)]:.2g}" if id(row) in pvalue else ""
    cells = [space.text(row.overrides[k]) if k in row.overrides else "" for k in keys]
    cells += [str(len(row.values)), shown, p, *map(str, more)]
    lines.append(f"| {' | '.join(cells)} |")
  if same := {k: v for k, v in top.overrides.items() if k not in keys}:
    lines += ["", f"All with {space.label(same, every)}."]
  if at := edges(found, metric):
    lines += ["", AT_EDGE.format(", ".join(at))]
  if "search" in ledger:
    lines += ["", search.remark(ledger["search"])]
  return "\n".join(lines)


def render(readme: str, ledger: Mapping[str, Any]) -> str:
  """A README with the ledger's table between its marks.

  Raises:
    InputError: the marks are not there.
  """
  pattern = f"({_BEGIN}\n).*?({_END})"
  if not re.search(pattern, readme, re.DOTALL):
    raise InputError(f"the README needs {_BEGIN} and {_END} where the table goes")
  return re.sub(
    pattern, lambda m: f"{m[1]}{table(ledger)}\n{m[2]}", readme, flags=re.DOTALL
  )


class Repeated(NamedTuple):
  """A row of a recorded ledger that was run again.

  Attributes:
    label: its overrides in short.
    band: where the mean of the new runs should lie.
    mean: of the new runs; NaN if none finished.
    is_inside: whether it lies there.
  """

  label: str
  band: statistics.Interval
  mean: float
  is_inside: bool


def repeated(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Repeated]:
  """Every row of `new` against the same row of `old`.

  Raises:
    InputError: another metric, a row that was not recorded, or one recorded with a
      single seed, which has no band.
  """
  if old["metric"] != new["metric"]:
    raise InputError(f"{old['metric']} was recorded, not {new['metric']}")
  recorded = {key(row.overrides): (n, row) for n, row in named(rows(old)).items()}
  found = []
  for row in rows(new):
    if (own := key(row.overrides)) not in recorded:
      raise InputError(f"{row.overrides} is not in the recorded results")
    label, before = recorded[own]
    band = statistics.predicted(list(before.values.values()), max(len(row.values), 1))
    inside = band.low <= row.mean <= band.high or row.values == before.values
    found.append(Repeated(label, band, row.mean, inside))
  return found
