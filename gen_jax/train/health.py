"""Checks on the first batch before the first step.

Loss against a uniform predictor's, gradients in other microbatches, gradient norm by
block, share of padding, parameters without gradient.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import jax
import numpy as np
import optax

from gen_jax import numbers as numbering
from gen_jax import rng, sharding, tree
from gen_jax.tasks import base
from gen_jax.train import state as states
from gen_jax.train import step as steps
from gen_jax.types import Array, Batch, Params, PyTree

# Jitted: (numbers, params, frozen, batch, keys) -> (gradient, summed loss).
Gradient = Callable[..., tuple[Params, base.LossOut]]


@dataclasses.dataclass(frozen=True)
class Health:
  """Results of the checks.

  Attributes:
    loss: mean loss in evaluation mode.
    expected_loss: of a uniform predictor, ln V for tokens; None if unknown.
    padding: share of padding in the batch, in [0, 1].
    masked_fraction: share of positions without loss, in [0, 1]: padding and prompts.
    microbatch_error: |g - g'| / |g|, g the run's gradient and g' the one with twice as
      many microbatches; None if the batch cannot be split further.
    grad_norm: by block.
    num_arrays: of parameters.
    without_gradient: paths of parameters whose gradient is exactly zero.
    items_per_parameter: tokens or images of the whole run, per parameter.
    tolerance: largest `microbatch_error` that rounding explains.
  """

  loss: float
  expected_loss: float | None
  padding: float
  masked_fraction: float
  microbatch_error: float | None
  grad_norm: dict[str, float]
  num_arrays: int
  without_gradient: tuple[str, ...]
  items_per_parameter: float
  tolerance: float

  def lines(self, unit: str) -> Iterator[str]:
    """The report, with warnings."""
    line = f"loss {self.loss:.4f}"
    if self.expected_loss is not None:
      line += f", {self.expected_loss:.4f} for a uniform predictor"
      if abs(self.loss - self.expected_loss) > 0.1 * self.expected_loss:
        line += "  <- WARNING: a fresh model should be near; check head and targets"
    yield line
    if self.microbatch_error is not None:
      line = (
        f"gradient in twice as many microbatches differs by {self.microbatch_error:.1e}"
      )
      if self.microbatch_error > self.tolerance:
        line += "  <- WARNING: sums and means are mixed up"
      yield line
    norms = "  ".join(f"{name} {norm:.3g}" for name, norm in self.grad_norm.items())
    yield f"gradient norm by block: {norms}"
    num = len(self.without_gradient)
    if num:
      shown = ", ".join(self.without_gradient[:4]) + (", ..." if num > 4 else "")
      yield (
        f"{num} of {self.num_arrays} arrays have no gradient yet ({shown}): expected if"
        " a later layer starts at zero"
      )
    masked = ""
    if self.masked_fraction > self.padding:
      masked = f", {self.masked_fraction:.1%} of it has no loss"
    yield (
      f"padding {self.padding:.1%} of the batch{masked};"
      f" {self.items_per_parameter:.3g} {unit} per parameter in the whole run"
    )


def _share(is_so: Array) -> float:
  return float(np.mean(tree.fetch(is_so)))


def gradients(task: base.Task, layout: sharding.Layout) -> Callable[[int], Gradient]:
  """Number of microbatches -> the gradient in evaluation mode, compiled once."""
  options = {"xla_backend_optimization_level": "0"} if layout.on_cpu else None

  @functools.cache
  def gradient(num):
    def fn(numbers, params, frozen, batch, keys):
      args, unroll = (task, params, frozen, batch, keys), layout.on_cpu
      with numbering.given(numbers), sharding.use(layout):
        return steps.gradients(*args, num, train=False, unroll=unroll)

    return jax.jit(fn, compiler_options=options)

  return gradient


def examine(
  gradient: Callable[[int], Gradient],
  state: states.TrainState,
  frozen: PyTree,
  batch: Batch,
  numbers: numbering.Numbers,
  layout: sharding.Layout,
  *,
  num_microbatches: int,
  expected_loss: float | None,
  num_items: float,
  tolerance: float = 1e-2,
) -> Health:
  """Computes the gradient of one batch with two numbers of microbatches.

  Args:
    gradient: see `gradients`.
    batch: the first global batch, in its layout.
    numbers: of the training step, which meets at least those of this gradient.
    num_microbatches: the run's; more memory than the run is never needed.
    num_items: tokens or images of the whole run.
    tolerance: of the two gradients' difference; 2e-2 was seen in bfloat16.
  """
  size = batch["weights"].shape[0]
  args = (state.params, frozen, batch, rng.per_example(jax.random.key(0), size))
  grads, out = gradient(num_microbatches)(numbers, *args)
  pieces = layout.num_batch_shards * num_microbatches
  error = None
  if size % (2 * pieces) == 0:
    again, _ = gradient(2 * num_microbatches)(numbers, *args)
    apart = optax.tree.norm(jax.tree.map(lambda a, b: a - b, grads, again))
    error = float(apart / max(float(optax.tree.norm(grads)), 1e-30))
  squares: dict[str, float] = {}
  without = []
  for path, grad in tree.flatten(grads).items():
    block = "/".join(path.split("/")[:-1][:1]) or path
    square = float(optax.tree.norm(grad, squared=True))
    squares[block] = squares.get(block, 0.0) + square
    if square == 0.0:
      without.append(path)
  return Health(
    loss=float(out.loss.value),
    expected_loss=expected_loss,
    padding=_share(batch["segments" if "segments" in batch else "weights"] == 0),
    masked_fraction=_share(batch["weights"] == 0),
    microbatch_error=error,
    grad_norm={name: math.sqrt(square) for name, square in squares.items()},
    num_arrays=len(tree.flatten(grads)),
    without_gradient=tuple(without),
    items_per_parameter=num_items / tree.size(state.params),
    tolerance=tolerance,
  )
