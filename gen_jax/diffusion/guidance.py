"""Guidance: combinators from Denoise to Denoise.

    Denoise = Callable[[x_t [B, ...], t [B]], Prediction]

with parameters and conditioning already bound. At fixed x_t both x0 and eps are affine
in the network's output, so extrapolating predictions equals extrapolating outputs, for
every target. Scales and intervals are traced values: sweeping them never recompiles.

Sources: Ho & Salimans 2022 (arXiv:2207.12598); Karras et al. 2024 (2406.02507) for a
weak network as reference; Kynkäänniemi et al. 2024 (2404.07724) for the interval; Lin
et al. 2024 (2305.08891) for rescaling; Brooks et al. 2023 (2211.09800) for two scales.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from gen_jax.diffusion import parameterisation as param
from gen_jax.diffusion import schedule as schedules
from gen_jax.types import Array

Denoise = Callable[[Array, Array], param.Prediction]


def guide(main: Denoise, reference: Denoise, scale: float | Array) -> Denoise:
  """reference + scale (main - reference): 1 is no guidance, 0 the reference alone.

  The null condition as reference is classifier-free guidance; a weaker network is
  autoguidance. Ho & Salimans' w is `scale - 1`.
  """
  return ladder((reference, main), (scale,))


def ladder(rungs: Sequence[Denoise], scales: Sequence[float | Array]) -> Denoise:
  """rungs[0] + sum_i scales[i] (rungs[i + 1] - rungs[i]), each called once.

  Every rung knows one condition more than the one below, and every condition has a
  scale of its own: nothing, picture, picture and instruction with (s_I, s_T) is the
  guidance of InstructPix2Pix. Equal scales are `guide` from bottom to top.

  Source: Brooks et al. 2023 (arXiv:2211.09800) eq. 3.
  """

  def denoise(x: Array, t: Array) -> param.Prediction:
    found = [rung(x, t) for rung in rungs]
    out = found[0]
    for below, above, scale in zip(found[:-1], found[1:], scales, strict=True):
      out = jax.tree.map(lambda o, a, b: o + scale * (a - b), out, above, below)  # noqa: B023
    return out

  return denoise


def interval(
  guided: Denoise, main: Denoise, t_min: float | Array, t_max: float | Array
) -> Denoise:
  """`guided` where t_min <= t <= t_max, `main` elsewhere, example by example."""

  def denoise(x: Array, t: Array) -> param.Prediction:
    inside = schedules.expand((t >= t_min) & (t <= t_max), x)
    return jax.tree.map(lambda g, m: jnp.where(inside, g, m), guided(x, t), main(x, t))

  return denoise


def rescale(
  schedule: schedules.Schedule, guided: Denoise, main: Denoise, phi: float | Array
) -> Denoise:
  """Pulls the spread of the guided x0 back to that of `main`, by a share `phi`.

  Large scales over-expose; this undoes it. Applied to x0 (the paper: to v), the
  standard deviation taken per example over all other axes. 0 is `guided`.
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
