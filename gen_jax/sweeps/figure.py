"""The figure of a ledger: means over seeds, Student's t intervals as bands, the seeds.

It holds the hash of its ledger, so that a figure of other results is noticed.
"""

import io
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gen_jax.sweeps import ledger, space, statistics
from gen_jax.system import files
from gen_jax.train import evaluators

FILE, STEP = "figure.png", "step"
SIZE = "size"  # the axis of a ladder, whose figure is that of `valleys`
_SOURCE = "Source"  # a key that PNG knows


class Line(NamedTuple):
  """What one line shows.

  Attributes:
    x: steps, or values of a config's key as text.
    values: of the metric, for each x those of all seeds.
  """

  x: list[Any]
  values: list[list[float]]

  @property
  def intervals(self) -> list[statistics.Interval]:
    """Over seeds, for each x; that of a single seed has no width."""
    return [
      statistics.over_seeds(v) if len(v) > 1 else statistics.Interval(*v * 3, 1)
      for v in self.values
    ]


def lines(found: Mapping[str, Any], x_axis: str = STEP) -> dict[str, Line]:
  """{what sets a line apart: its points}.

  Args:
    x_axis: STEP, for the metric during training, without the untrained weights; or a
      key that the sweep varies, for the metric at the end. Runs that diverged have
      none.
  """
  arms = [arm for arm in found["arms"] if arm["status"] == "finished"]
  arms = [arm for arm in arms if arm["value"] is not None]
  rest = [{k: v for k, v in a["overrides"].items() if k != x_axis} for a in arms]
  every = space.keys([arm["overrides"] for arm in arms])
  varied = [key for key in space.varied(rest) if key != "seed"]
  points: dict[str, dict[Any, list[float]]] = {}
  for arm, others in zip(arms, rest, strict=True):
    name = space.label({k: others[k] for k in varied if k in others}, every)
    values = points.setdefault(name, {})
    at = space.text(arm["overrides"].get(x_axis, ""))
    curve = [(step, value) for step, value in arm["curve"] if step]
    for x, y in curve if x_axis == STEP else [(at, arm["value"])]:
      values.setdefault(x, []).append(y)
  return {
    name: Line(list(values), list(values.values())) for name, values in points.items()
  }


def is_wide(lines: Mapping[str, Line], metric: str) -> bool:
  """Whether means of a loss or a distance span so much that their axis is a log's."""
  means = [interval.mean for line in lines.values() for interval in line.intervals]
  is_cost = evaluators.cost(metric, 1.0) > 0
  return is_cost and 0 < 10 * min(means) < max(means)


def span(lines: Mapping[str, Line], share: float) -> tuple[float, float]:
  """The axis of the metric: all values with room around; bands may be far wider.

  Args:
    share: of the values' range, on either side.
  """
  seen = [v for line in lines.values() for values in line.values for v in values]
  room = share * (max(seen) - min(seen)) or 1.0
  return min(seen) - room, max(seen) + room


def png(found: Mapping[str, Any], x_axis: str = STEP) -> bytes:
  """Draws `lines` of a ledger, and of each of its further metrics next to them.

  Values of a key stand at equal distances, in the sweep's order.
  """
  from matplotlib import figure as figures  # not pyplot, whose state is the caller's

  views = ledger.views(found)
  width = 7.0 if len(views) == 1 else 4.4 * len(views)
  figure = figures.Figure(figsize=(width, 4.2))
  for axis, view in zip(figure.subplots(1, len(views), squeeze=False)[0], views):  # noqa: B905
    _draw(axis, view, x_axis)
  return encoded(figure, found)


def encoded(figure, found: Mapping[str, Any]) -> bytes:
  """A figure of matplotlib as PNG, under its ledger's question, with its hash."""
  figure.suptitle(found["question"], fontsize=10, wrap=True)
  figure.tight_layout()
  out = io.BytesIO()
  metadata = {_SOURCE: files.value_sha256(found), "Software": None}
  figure.savefig(out, format="png", dpi=110, metadata=metadata)
  return out.getvalue()


def _draw(axis, view: Mapping[str, Any], x_axis: str) -> None:
  """The lines of one metric."""
  from matplotlib import ticker

  found = lines(view, x_axis)
  ticks = list(dict.fromkeys(x for line in found.values() for x in line.x))
  for name, line in found.items():
    x = line.x if x_axis == STEP else [ticks.index(at) for at in line.x]
    mean, low, high = np.array([i[:3] for i in line.intervals]).T
    how = {"label": _lines(name), "marker": "o", "markersize": 4, "linewidth": 2}
    (drawn,) = axis.plot(x, mean, **how)
    color = drawn.get_color()
    axis.fill_between(x, low, high, alpha=0.15, color=color, linewidth=0)
    if len({len(values) for values in line.values}) == 1:  # each has all seeds
      marker = "." if len(x) == 1 else ""  # a lone point makes no line
      axis.plot(x, line.values, color=color, linewidth=0.6, marker=marker, alpha=0.5)
  if x_axis != STEP:
    axis.set_xticks(range(len(ticks)), map(_short, ticks), fontsize=8)
  if is_wide(found, view["metric"]):
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
  else:
    axis.set_ylim(*span(found, 0.2))
  axis.set_xlabel(x_axis)
  axis.set_ylabel(view["metric"])
  axis.grid(alpha=0.3)
  if len(found) > 1:
    axis.legend(fontsize=8)


def _lines(name: str) -> str:
  """A line's name, broken after commas where it is long.

  >>> _lines("a=1,b=2"), _lines("a=" + 40 * "1" + ",b=2,c=3").split(chr(10))[1]
  ('a=1,b=2', 'b=2,c=3')
  """
  lines = [""]
  for part in name.replace(",", ",\n").split("\n"):
    lines += [part] if len(lines[-1] + part) > 40 else [lines.pop() + part]
  return "\n".join(filter(None, lines))


def _short(tick: str) -> str:
  """A tick's label: numbers in at most six digits.

  >>> _short("1000000.0"), _short("0.03125"), _short("ddim")
  ('1e+06', '0.03125', 'ddim')
  """
  try:
    return f"{float(tick):g}"
  except ValueError:
    return tick


def source(path: pathlib.Path) -> str | None:
  """Hash of the ledger that a figure was made of."""
  with Image.open(path) as image:
    return image.text.get(_SOURCE)
