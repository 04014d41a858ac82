"""Guidance: combinators from Denoise to Denoise.

    Denoise = Callable[[x_t [B, ...], t [B]], Prediction]

with parameters and conditioning already bound. At fixed x_t both x0 and eps are affine
in the network's output, so extrapolating predictions equals extrapolating outputs, for
every target. Scales and intervals are traced: changing them never recompiles.

Sources: Ho & Salimans 2022 (arXiv:2207.12598); Karras et al. 2024 (2406.02507)
(autoguidance); Kynkäänniemi et al. 2024 (2404.07724) for the interval; Lin
et al. 2024 (2305.08891) for rescaling; Brooks et al. 2023 (2211.09800) for two scales.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from gen_jax.diffusion import parameterisation as param
from gen_jax.diffusion import schedule as schedules
from gen_jax.types import Array

Denoise = Callable[[Array, Array], param.Prediction]
# Predictions under several conditions, each with one more than the one before.
Predictions = Callable[[Array, Array], Sequence[param.Prediction]]
Scale = float | Array | Callable[[Array], Array]  # a function takes t [B] to [B]


def guide(main: Denoise, reference: Denoise, scale: Scale) -> Denoise:
  """reference + scale (main - reference): 1 is no guidance, 0 the reference alone.

  The null condition as reference is classifier-free guidance; a weaker network is
  autoguidance. Ho & Salimans' w is `scale - 1`.
  """
  return multi_guidance(each(reference, main), (scale,))


def each(*predictions: Denoise) -> Predictions:
  """Several denoisers, of any networks, called one after the other."""
  return lambda x, t: [prediction(x, t) for prediction in predictions]


def batched(denoise: Denoise, num: int) -> Predictions:
  """One network under `num` conditions, called once.

  Args:
    denoise: bound to num B conditions, those of one image adjacent (`interleave`): a
      mesh that shards the batch does not separate them.
  """

  def predictions(x: Array, t: Array) -> Sequence[param.Prediction]:
    found = denoise(*(interleave(*[rows] * num) for rows in (x, t)))
    parts = jax.tree.map(lambda p: p.reshape(-1, num, *p.shape[1:]), found)
    return [jax.tree.map(lambda p, i=i: p[:, i], parts) for i in range(num)]

  return predictions


def interleave(*parts: Array) -> Array:
  """[B, ...] each -> [num B, ...]: row 0 of every part, row 1 of every part, ..."""
  return jnp.stack(parts, 1).reshape(-1, *parts[0].shape[1:])


def multi_guidance(predictions: Predictions, scales: Sequence[Scale]) -> Denoise:
  """predictions[0] + sum_i scales[i] (predictions[i + 1] - predictions[i]).

  Predictions without condition, with the image, with image and instruction, and scales
  (s_I, s_T) give InstructPix2Pix. Equal scales are `guide` from the first to the last.

  Source: Brooks et al. 2023 (arXiv:2211.09800) eq. 3.
  """

  def denoise(x: Array, t: Array) -> param.Prediction:
    found = predictions(x, t)
    out = found[0]
    for below, above, scale in zip(found[:-1], found[1:], scales, strict=True):
      at = schedules.expand(scale(t), x) if callable(scale) else scale
      out = jax.tree.map(lambda o, a, b: o + at * (a - b), out, above, below)  # noqa: B023
    return out

  return denoise


def within(
  scale: float | Array, t_min: float | Array, t_max: float | Array
) -> Callable[[Array], Array]:
  """`scale` where t_min <= t <= t_max, elsewhere 1 (no guidance)."""
  return lambda t: jnp.where((t >= t_min) & (t <= t_max), scale, 1.0)


def rescale(
  schedule: schedules.Schedule, guided: Denoise, main: Denoise, phi: float | Array
) -> Denoise:
  """Rescales the guided x0 to the standard deviation of `main`'s, by a share `phi`.

  Undoes the over-exposure of large scales. Applied to x0 (in the paper to v), with the
  standard deviation per example over all other axes. phi = 0 is `guided`.
  """

  def denoise(x: Array, t: Array) -> param.Prediction:
    strong, plain = guided(x, t), main(x, t)
    axes = tuple(range(1, x.ndim))
    ratio = jnp.std(plain.x0, axes, keepdims=True) / jnp.maximum(
      jnp.std(strong.x0, axes, keepdims=True), 1e-12
    )
    x0 = strong.x0 * (phi * ratio + (1.0 - phi))
    return param.solve(param.X0(), schedule, t, x, x0)

  return denoise
