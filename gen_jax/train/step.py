"""The training step, for every task.

    keys = fold_in(fold_in(key, step), example)
    gradients of loss.total, summed over microbatches, divided once by loss.count
    -> optax (clipping, learning rate, ...) -> moving average -> new state

Numbers of the config (rates, decays, weights of losses) are arguments of the step, so
that runs that differ in them alone share one compiled program: see `gen_jax.numbers`.

Sums are exchanged and every example has its own key, so the result does not depend on
the number of microbatches, hosts and devices, for any example weights.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from gen_jax import numbers as numbering
from gen_jax import rng, sharding
from gen_jax.tasks import base
from gen_jax.train import state as states
from gen_jax.types import Array, Batch, Mean, Params, PyTree

Metrics = dict[str, Mean]
# (state, frozen, batch, numbers) -> (state, metrics)
Step = Callable[
  [states.TrainState, PyTree, Batch, numbering.Numbers],
  tuple[states.TrainState, Metrics],
]


def ema_decay(decay: float, step: Array, warmup: float = 10.0) -> Array:
  """Decay with warm-up: min(decay, (1 + step) / (warmup + step)).

  Early averages then forget the initial weights. Where the second is the smaller one,
  weights of step i count about i^(warmup - 2): all alike at 2, the last ones alone far
  above. That is the power-function average of Karras et al. 2023 (arXiv:2312.02696)
  section 3.1, gamma = warmup - 2. Source: TensorFlow's
  ExponentialMovingAverage(num_updates), which has 10.
  """
  step = step.astype(jnp.float32)
  return jnp.minimum(decay, (1.0 + step) / (warmup + step))


def _microbatches(x: Array, num: int) -> Array:
  """[B, ...] -> [num, B / num, ...]; microbatch m has examples m, m + num, ...

  Strided, so that every device splits its own examples without communication.
  """
  return jnp.swapaxes(x.reshape(x.shape[0] // num, num, *x.shape[1:]), 0, 1)


def gradients(
  task: base.Task,
  params: Params,
  frozen: PyTree,
  batch: Batch,
  keys: Array,
  num_microbatches: int,
  train: bool = True,
  unroll: bool = False,
) -> tuple[Params, base.LossOut]:
  """Gradient of loss.total / loss.count over the whole batch, and the summed LossOut.

  `unroll` unrolls the loop over microbatches: XLA's CPU backend runs the gradient of a
  convolution five to ten times slower inside a loop.
  """

  def total(params, batch, keys):
    out = task.loss(params, frozen, batch, keys, train=train)
    return out.loss.total, out

  def grad(batch, keys):
    return jax.grad(total, has_aux=True)(params, batch, keys)

  if num_microbatches == 1:
    summed, out = grad(batch, keys)
  else:
    parts = jax.tree.map(lambda x: _microbatches(x, num_microbatches), (batch, keys))

    def body(carry, part):
      return jax.tree.map(jnp.add, carry, grad(*part)), None

    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(grad, *first)
    )
    (summed, out), _ = jax.lax.scan(body, zeros, parts, unroll=unroll)
  count = jnp.maximum(out.loss.count, jnp.finfo(jnp.float32).tiny)
  return jax.tree.map(lambda g: g / count, summed), out


def make_step(
  task: base.Task,
  optimizer: optax.GradientTransformation,
  *,
  layout: sharding.Layout,
  num_microbatches: int = 1,
  decay: float | None = None,
  warmup: float = 10.0,
) -> Step:
  """Returns the step; jit it with `compile_step`.

  Its `numbers` are the values of those numbers of the task, the optimiser and the
  average that the program takes as arguments, which `numbers` finds; {}: all are
  constants.

  A step i whose loss or gradient norm is not finite changes only the state's `step`, to
  ~i; steps dispatched before its metrics are known then change nothing. See
  `states.standing`.

  Args:
    decay: of the moving average, in [0, 1); None without one.
    warmup: of it, see `ema_decay`.
  """

  def step(state, frozen, batch, numbers):
    with numbering.given(numbers), sharding.use(layout):
      return advance(state, frozen, batch)

  def advance(state, frozen, batch):
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    batch_size = jax.tree.leaves(batch)[0].shape[0]
    keys = rng.per_example(key, batch_size)
    grads, out = gradients(
      task, state.params, frozen, batch, keys, num_microbatches, unroll=layout.on_cpu
    )
    norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
      assert decay is not None
      kept = ema_decay(decay, state.step, warmup)
      ema = jax.tree.map(lambda e, p: kept * e + (1.0 - kept) * p, ema, params)
    new = states.TrainState(state.step + 1, params, ema, opt_state, state.key)
    finite = jnp.isfinite(out.loss.total) & jnp.isfinite(norm) & (state.step >= 0)
    stopped = dataclasses.replace(state, step=jnp.minimum(state.step, ~state.step))
    new = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, stopped)
    metrics = {"loss": out.loss, **out.metrics}
    return new, {**metrics, "grad_norm": Mean(norm, jnp.float32(1.0))}

  return step


def numbers(
  step: Step, state: states.TrainState, frozen: PyTree, batch: Batch
) -> dict[str, float | int]:
  """The numbers that a step takes as arguments, with their values in the config.

  Args:
    state, frozen, batch: abstract or not.
  """
  return numbering.found(step, state, frozen, batch, {})


def compile_step(
  step: Step, state: states.TrainState, layout: sharding.Layout
) -> jax.stages.Wrapped:
  """Jits a step: the state keeps its layout, and its buffers are donated."""
  at = jax.tree.map(lambda x: x.sharding, state)
  return jax.jit(step, donate_argnums=0, out_shardings=(at, layout.replicated))
