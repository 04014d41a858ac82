"""Guidance: combinators from Denoise to Denoise.

    Denoise = Callable[[x_t [B, ...], t [B]], Prediction]

with parameters and conditioning already bound. At fixed x_t both x0 and eps are affine
in the network's output, so extrapolating predictions equals extrapolating outputs, for
every target. Scales and intervals are traced values: sweeping them never recompiles.

Sources: Ho & Salimans 2022 (arXiv:2207.12598); Karras et al. 2024 (2406.02507) for a
weak network as reference; Kynkäänniemi et al. 2024 (2404.07724) for the interval; Lin
et al. 2024 (2305.08891) for rescaling.
"""

from collections.abc import Callable

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

  def denoise(x: Array, t: Array) -> param.Prediction:
    good, bad = main(x, t), reference(x, t)
    return jax.tree.map(lambda m, r: r + scale * (m - r), good, bad)

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
