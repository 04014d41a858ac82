"""The figure of a ladder: loss over size at each budget, and how the best size grows.

What `scaling` refuses to fit is shown without its fit, with the reason.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gen_jax.sweeps import figure, ladder, scaling
from gen_jax.types import InputError


def png(found: Mapping[str, Any]) -> bytes:
  """`draw`, of a ladder's ledger."""
  return figure.encoded(draw(ladder.points(found), found["metric"]), found)


def draw(points: Sequence[scaling.Point], metric: str):
  """Two axes: every loss with its budget's parabola, and N = k C^a over budgets."""
  from matplotlib import figure as figures

  drawing = figures.Figure(figsize=(8.8, 4.2))
  left, right = drawing.subplots(1, 2)
  groups = scaling.budgets(points)
  for group in groups:
    _draw_budget(left, right, group)
  left.set(xscale="log", xlabel="N, parameters", ylabel=metric)
  left.legend(title="FLOPs", fontsize=8)
  try:
    _draw_growth(right, scaling.optimum(points))
  except InputError as error:
    right.set_title("\n".join(textwrap.wrap(str(error), 60)), fontsize=8)
  right.set(xscale="log", yscale="log", xlabel="C, FLOPs", ylabel="best N")
  flops = [float(np.mean([point.flops for point in group])) for group in groups]
  right.set_xticks(flops, [f"{x:.2g}" for x in flops])
  right.set_xticks([], minor=True)
  for axis in (left, right):
    axis.grid(alpha=0.3, which="both")
  return drawing


def _draw_budget(left, right, group: Sequence[scaling.Point]) -> None:
  """The seeds' losses, the parabola of their means and its minimum."""
  flops = np.mean([point.flops for point in group])
  sizes = [point.params for point in group for _ in point.losses]
  losses = [loss for point in group for loss in point.losses]
  (drawn,) = left.plot(sizes, losses, "o", markersize=4, label=f"{flops:.2g}")
  means = [(point, float(np.mean(point.losses))) for point in group]
  size = np.log([point.params for point in group])
  curve = np.polyfit(size - size.mean(), [loss for _, loss in means], 2)
  x = np.linspace(size.min(), size.max(), 100)
  color = drawn.get_color()
  left.plot(np.exp(x), np.polyval(curve, x - size.mean()), color=color, linewidth=2)
  try:
    lowest = scaling.valley(means)
  except InputError:
    return
  left.plot(lowest.params, lowest.loss, "*", color=color, markersize=13)
  right.plot(lowest.flops, lowest.params, "*", color=color, markersize=13)


def _draw_growth(axis, found: scaling.Optimum) -> None:
  flops, params = np.log([(v.flops, v.params) for v in found.valleys]).T
  middle = flops.mean(), params.mean()
  x = np.linspace(flops.min(), flops.max(), 50)
  for exponent, style in zip(found.exponent[:3], ("-", ":", ":"), strict=True):
    y = middle[1] + exponent * (x - middle[0])
    axis.plot(np.exp(x), np.exp(y), style, color="black")
  mean, low, high = found.exponent[:3]
  axis.set_title(f"N ~ C^a, a = {mean:.2f}, from {low:.2f} to {high:.2f}", fontsize=9)
