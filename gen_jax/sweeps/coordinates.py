"""Coordinate check: does the size of what a model computes depend on its width?

Models of several widths train for a few steps on the same batches at one learning
rate. Before each step the mean |x| of every residual stream is noted; under muP it is
the same at every width, at any step, while the standard parametrisation's grows. A
slope of log2 mean |x| on log2 width over 0.05 says that something scales wrongly.
The check sees wrong scales, not whether the best learning rate transfers: for that, run
a sweep as well.

Source: Yang et al. 2022 (arXiv:2203.03466) appendix D.1.
"""

import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import build, rng
from gen_jax import experiment as experiments
from gen_jax.build import widths as config_widths
from gen_jax.models import dit
from gen_jax.nn import block, spatial
from gen_jax.runs import weights
from gen_jax.tasks import base
from gen_jax.train import state as states
from gen_jax.train import step as steps
from gen_jax.types import Array, Batch, InputError, Params, PyTree

LIMIT = 0.05  # of a slope
INPUT, OUTPUT = "input", "output"
PARAMETRISATIONS = ("standard", "muP")
_RESIDUAL = (block.Block, dit.Block, spatial.ResBlock)
_RESIDUAL += (spatial.SelfAttention, spatial.SpatialTransformer)
# What would hide a layer's values inside a loop or a piece of another program.
_PLAIN = {"scan_layers": False, "remat": None, "head_chunk": None, "dropout": 0.0}


def streams(
  task: base.Task, params: Params, frozen: PyTree, batch: Batch, keys: Array
) -> dict[str, tuple[Array, int]]:
  """{stream: (mean |x| [], its channels)} of the loss on a batch.

  A stream is named after the block that it comes out of; `input` goes into the first
  block, `output` is what the model returns: logits, or an image.
  """
  found: dict[str, tuple[Array, int]] = {}

  def note(name, x):
    found[name] = (jnp.abs(x.astype(jnp.float32)).mean(), x.shape[-1])

  def intercept(apply, args, kwargs, context):
    module, is_whole = context.module, not context.module.path
    if context.method_name != "__call__":
      return apply(*args, **kwargs)
    if is_whole and (score := kwargs.get("logits_fn")):

      def noting(logits, *rest):
        note(OUTPUT, logits)
        return score(logits, *rest)

      kwargs = {**kwargs, "logits_fn": noting}
    if isinstance(module, _RESIDUAL) and INPUT not in found:
      note(INPUT, args[0])
    out = apply(*args, **kwargs)
    if isinstance(module, _RESIDUAL):
      note("/".join(module.path), out[0] if isinstance(out, tuple) else out)
    elif is_whole and isinstance(out, jax.Array):
      note(OUTPUT, out)
    return out

  with nn.intercept_methods(intercept):
    task.loss(params, frozen, batch, keys, train=False)
  return found


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config with a constant rate, layers that can be looked into, one device."""
  task, key = config["task"], config_widths.place(config)
  if key is None:
    raise InputError(
      "coordinates needs a model with a base_width: a transformer, UNet or DiT"
    )
  keys = {k: v for k, v in _PLAIN.items() if k in task[key]}
  peak = config["optimizer"]["learning_rate"]["peak"]
  constant = {"name": "constant", "peak": peak}
  return {
    **config,
    "task": {**task, key: {**task[key], **keys}},
    "optimizer": {**config["optimizer"], "learning_rate": constant},
    "mesh": {"name": "mesh"},
    "init_from": None,
    "adapter": None,
  }


def _of_width(
  config: Mapping[str, Any], home: pathlib.Path, num_steps: int, num_seeds: int
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
  """Mean |x| [num_steps + 1] of each stream, averaged over seeds; its channels."""
  made = experiments.make(config, home, devices=jax.devices()[:1])
  frozen = weights.load_frozen(made, home)
  optimizer, _ = made.optimizer(num_steps)
  data, size = made.pipeline("train"), made.data.batch_size
  batches = [made.layout.put(data.batch(i), size) for i in range(num_steps + 1)]
  advance = jax.jit(steps.make_step(made.task, optimizer, layout=made.layout))
  channels: dict[str, int] = {}

  @jax.jit
  def look(params, frozen, batch):
    keys = rng.per_example(jax.random.key(0), size)
    found = streams(made.task, params, frozen, batch, keys)
    channels.update({name: num for name, (_, num) in found.items()})
    return {name: mean for name, (mean, _) in found.items()}

  seeds = []
  for seed in range(num_seeds):
    args = (made.batch(), made.layout, made.seed + seed)
    state = states.create(made.task, optimizer, *args, with_ema=False)
    seen = []
    for i, batch in enumerate(batches):
      seen.append(look(state.params, frozen, batch))
      if i < num_steps:
        state, _ = advance(state, frozen, batch, {})
    seeds.append(seen)
  return {
    name: np.mean([[float(at[name]) for at in seen] for seen in seeds], 0)
    for name in channels
  }, channels


def slope(widths: Sequence[int], sizes: Sequence[float]) -> float:
  """Of log2 size on log2 width; NaN where a size is 0, infinite where one is.

  >>> round(slope([64, 128, 256], [1.0, 2.0, 4.0]), 6)
  1.0
  """
  if not all(map(math.isfinite, sizes)):
    return math.inf
  if not all(sizes):
    return math.nan
  return float(np.polyfit(np.log2(widths), np.log2(sizes), 1)[0])


def check_widths(widths: Sequence[int], base_width: int) -> None:
  """Raises InputError for widths over which there is no slope, or below the base's."""
  if len(widths) < 2 or list(widths) != sorted({*widths}) or widths[0] < 1:
    raise InputError(
      f"--widths {','.join(map(str, widths))} must be at least two rising numbers:"
      " 64,128,256"
    )
  if base_width > widths[0]:
    raise InputError(
      f"base_width={base_width} must be at most the smallest of --widths, {widths[0]}"
    )


def check(
  config: Mapping[str, Any],
  widths: Sequence[int],
  home: pathlib.Path,
  *,
  num_steps: int = 4,
  num_seeds: int = 1,
  base_width: int | None = None,
) -> dict[str, Any]:
  """Sizes and slopes under the standard parametrisation and muP, as plain data.

  Args:
    config: resolved; its width says how heads and the like grow.
    home: an empty folder, for the tokenizer and the like.
    num_seeds: of initial weights, over which sizes are averaged; the data is the same.
    base_width: None: the config's own, or the smallest of widths.

  Returns:
    widths, base_width, learning_rate, num_steps, num_seeds; for each parametrisation
    streams {name: [steps][widths] of mean |x|}, slopes {name: [steps]}, and worst, the
    largest |slope| of a residual stream at any step.

  Raises:
    InputError: widths or a config that cannot be.
  """
  build.check_config(config)
  plain = _plain(config)
  own = config["task"][config_widths.place(config)].get(config_widths.KEY)
  base_width = base_width or own or widths[0]
  check_widths(widths, base_width)
  found: dict[str, Any] = {"widths": list(widths), "base_width": base_width}
  found |= {"num_steps": num_steps, "num_seeds": num_seeds}
  found["learning_rate"] = plain["optimizer"]["learning_rate"]["peak"]
  for name, base_of in zip(PARAMETRISATIONS, (None, base_width), strict=True):
    arms = [config_widths.at(plain, width, base_of) for width in widths]
    found[name] = _sloped(
      widths, [_of_width(arm, home, num_steps, num_seeds) for arm in arms]
    )
  return found


def _sloped(widths: Sequence[int], runs: Sequence[Any]) -> dict[str, Any]:
  """Sizes and slopes of the streams whose channels grow, and of the output."""
  (_, first), *_, (_, last) = runs
  names = [n for n in first if n == OUTPUT or first[n] != last[n]]
  sizes = {n: np.stack([found[n] for found, _ in runs], 1).tolist() for n in names}
  slopes = {n: [slope(widths, row) for row in rows] for n, rows in sizes.items()}
  seen = [abs(s) for n, row in slopes.items() if n != OUTPUT for s in row]
  worst = math.inf if any(map(math.isnan, seen)) else max(seen)
  return {"streams": sizes, "slopes": slopes, "worst": worst}


def table(found: Mapping[str, Any]) -> list[str]:
  """Slopes by stream, before training and after it, and the verdict."""
  lines = ["slope of log2 mean |x| on log2 width, before the first step and after the"]
  lines[0] += f" last ({found['num_steps']})"
  names = list(found["muP"]["slopes"])
  wide = max(map(len, names))
  lines.append(f"{'':{wide}}  " + "  ".join(f"{p:>15}" for p in PARAMETRISATIONS))
  for name in names:
    rows = (found[p]["slopes"][name] for p in PARAMETRISATIONS)
    lines.append(
      f"{name:{wide}}  " + "  ".join(f"{row[0]:7.3f} {row[-1]:7.3f}" for row in rows)
    )
  for name in PARAMETRISATIONS:
    worst = found[name]["worst"]
    verdict = "passes" if worst < LIMIT else "fails"
    lines.append(f"{name}: largest |slope| of a residual stream {worst:.3f}: {verdict}")
  return lines


def png(found: Mapping[str, Any]) -> bytes:
  """Mean |x| after the last step over the width, a panel for each parametrisation."""
  from matplotlib import figure as figures  # not pyplot, whose state is the caller's

  figure = figures.Figure(figsize=(9.0, 4.2))
  for axis, name in zip(figure.subplots(1, 2, sharey=True), PARAMETRISATIONS):  # noqa: B905
    for stream, rows in found[name]["streams"].items():
      dashed = "--" if stream == OUTPUT else "-"
      axis.plot(found["widths"], rows[-1], dashed, marker="o", ms=4, label=stream)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xlabel("width")
    axis.set_title(f"{name}: largest |slope| {found[name]['worst']:.3f}", fontsize=10)
    axis.grid(alpha=0.3)
  figure.axes[0].set_ylabel(f"mean |x| after {found['num_steps']} steps")
  figure.axes[1].legend(fontsize=7)
  figure.tight_layout()
  out = io.BytesIO()
  figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
  return out.getvalue()
