"""Metrics over steps, as plots."""

import io
from typing import Any

from gen_jax import errors


def png(rows: list[dict[str, float]], frames: dict[str, dict[str, str]]) -> bytes:
  """PNG of metrics over steps.

  Args:
    rows: of metrics.jsonl.
    frames: {title: {label: key of a row}}; one plot each.
  """
  with errors.extra("report"):
    from matplotlib import figure as figures  # not pyplot, whose state is the caller's

  columns = min(len(frames), 3)
  shape = (-(-len(frames) // columns), columns)
  size = (4.2 * shape[1], 3.2 * shape[0])
  figure = figures.Figure(figsize=size)
  axes = figure.subplots(*shape, squeeze=False)
  for axis in axes.flat[len(frames) :]:
    axis.remove()
  for axis, (title, lines) in zip(axes.flat, frames.items(), strict=False):
    for label, key in lines.items():
      points = [(r["step"], r[key]) for r in rows if r.get(key) is not None]
      marker = "o" if "/" in key or len(points) == 1 else None
      axis.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=4)
    axis.set_xlabel("step")
    axis.set_title(title)
    axis.grid(alpha=0.3)
    if len(lines) > 1:
      axis.legend()
  figure.tight_layout()
  png = io.BytesIO()
  figure.savefig(png, format="png", dpi=110)
  return png.getvalue()


def frames(
  rows: list[dict[str, float]], config: dict[str, Any]
) -> dict[str, dict[str, str]]:
  """The plots of `curves`: training and validation together if they are comparable.

  With a discriminator the training loss has a term that validation leaves out; the two
  then have plots of their own.
  """
  keys = {key for row in rows for key, value in row.items() if value is not None}
  hidden = {"step", "learning_rate", "grad_norm", "data_wait"}
  plain = {k for k in keys - hidden if "/" not in k and not k.endswith("_per_sec")}
  plain = {k for k in plain if not k.endswith("_accuracy")}
  differ = {"loss"} if config["task"].get("discriminator") else set()
  frames = {}
  for name in sorted(plain):
    other = f"validation/{name}"
    if name in differ:
      frames[f"{name} (training, with the discriminator)"] = {"training": name}
      frames |= {f"{name} (validation)": {"validation": other}} if other in keys else {}
    else:
      both = {"training": name, "validation": other}
      frames[name] = {label: key for label, key in both.items() if key in keys}
  measured = [k for row in rows for k in row if "/" in k and "validation/" not in k]
  often = sorted(k for k in keys & set(measured) if measured.count(k) > 1)
  return frames | {key: {key: key} for key in often}
