"""A look at the first batch before the first step: what would otherwise cost days.

Loss against what a model that knows nothing must have, microbatches against the whole,
gradient norm by block, share of padding, parameters that no gradient reaches.
"""

import dataclasses
import math
from collections.abc import Iterator

import jax
import numpy as np
import optax

from gen_jax import rng, sharding, tree
from gen_jax.tasks import base
from gen_jax.train import state as states
from gen_jax.train import step as steps
from gen_jax.types import Array, Batch, PyTree


@dataclasses.dataclass(frozen=True)
class Health:
  """What the first batch shows.

  Attributes:
    loss: mean loss, dropout and the like off.
    expected_loss: of a model that knows nothing, ln V for tokens; None where unknown.
    padding: share of the batch that holds nothing, in [0, 1].
    unlearned: share of it that has weight 0: padding, and questions.
    microbatch_error: |g - g'| / |g|, g the run's gradient and g' that of twice as many
      microbatches; None where the batch cannot be cut further.
    grad_norm: by block.
    num_arrays: of parameters.
    without_gradient: paths of parameters whose gradient is exactly zero.
    items_per_parameter: tokens or images of the whole run, per parameter.
    tolerance: what rounding may make of `microbatch_error`.
  """

  loss: float
  expected_loss: float | None
  padding: float
  unlearned: float
  microbatch_error: float | None
  grad_norm: dict[str, float]
  num_arrays: int
  without_gradient: tuple[str, ...]
  items_per_parameter: float
  tolerance: float

  def lines(self, unit: str) -> Iterator[str]:
    """The report, with a warning where something is not as it should be."""
    line = f"loss {self.loss:.4f}"
    if self.expected_loss is not None:
      line += f", {self.expected_loss:.4f} for a model that knows nothing"
      if abs(self.loss - self.expected_loss) > 0.1 * self.expected_loss:
        line += "  <- WARNING: a fresh model should be near; look at head and targets"
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
        f"{num} of {self.num_arrays} arrays have no gradient yet ({shown}): right where"
        " a later layer starts at zero"
      )
    questions = ""
    if self.unlearned > self.padding:
      questions = f", {self.unlearned:.1%} of it is not learned"
    yield (
      f"padding {self.padding:.1%} of the batch{questions};"
      f" {self.items_per_parameter:.3g} {unit} a parameter in the whole run"
    )


def _share(is_so: Array) -> float:
  return float(np.mean(tree.fetch(is_so)))


def examine(
  task: base.Task,
  state: states.TrainState,
  frozen: PyTree,
  batch: Batch,
  layout: sharding.Layout,
  *,
  num_microbatches: int,
  expected_loss: float | None,
  num_items: float,
  tolerance: float = 1e-2,
) -> Health:
  """Takes the gradient of one batch twice, in different pieces.

  Args:
    batch: the first global batch, in its layout.
    num_microbatches: the run's, so that no more memory is needed than it will need.
    num_items: tokens or images that the whole run will see.
    tolerance: of the two gradients' difference; 2e-2 was seen in bfloat16.
  """
  size = batch["weights"].shape[0]
  keys = rng.per_example(jax.random.key(0), size)
  is_cpu = layout.on_cpu
  options = {"xla_backend_optimization_level": "0"} if is_cpu else None  # it runs once

  def gradient(num):
    def fn(params, frozen, batch, keys):
      args = (task, params, frozen, batch, keys, num)
      with sharding.use(layout):
        return steps.gradients(*args, train=False, unroll=is_cpu)

    return jax.jit(fn, compiler_options=options)(state.params, frozen, batch, keys)

  grads, out = gradient(num_microbatches)
  pieces = layout.num_batch_shards * num_microbatches
  error = None
  if size % (2 * pieces) == 0:
    again, _ = gradient(2 * num_microbatches)
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
    unlearned=_share(batch["weights"] == 0),
    microbatch_error=error,
    grad_norm={name: math.sqrt(square) for name, square in squares.items()},
    num_arrays=len(tree.flatten(grads)),
    without_gradient=tuple(without),
    items_per_parameter=num_items / tree.size(state.params),
    tolerance=tolerance,
  )
