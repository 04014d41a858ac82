"""Editing: sampling that starts from an image's latent z, or keeps part of it.

    strength   sampling starts at strength times the grid's first time, from z noised
               to that time; the grid is compressed below it, so the number of steps
               and the sampler are free, and a new strength does not recompile
    keep       where True, every step's result is replaced by z noised to its end time

Strength 1 ignores z, although alpha is not quite 0 at the first time: text-to-image
starts without it. Strength 0 returns z.

Inversion finds the noise that a prompt maps to z: a sampler runs from low to high
times. Sampling from that noise returns z approximately with `ddim`, `euler` and `heun`,
exactly with `belm`.

Sources: Meng et al. 2021 (arXiv:2108.01073); Lugmayr et al. 2022 (2201.09865) eq. 8;
Song et al. 2020 (2010.02502) section 4.3; Mokady et al. 2022 (2211.09794) section 3.
"""

import jax.numpy as jnp

from gen_jax.diffusion import guidance, samplers
from gen_jax.diffusion import schedule as schedules
from gen_jax.types import Array, PyTree


def shortened(times: Array, strength: Array, t_first: float) -> Array:
  """`times` compressed to start at strength [] times times[0], with as many steps.

  Times contract towards t_first, the lowest time that the network was trained on. If
  the new start is below t_first, all are scaled by `strength`.
  """
  first = strength * times[0]
  share = (first - t_first) / jnp.maximum(times[0] - t_first, 1e-6)
  inner = t_first + share * (times - t_first)
  inner = jnp.where(times > t_first, inner, times)
  return jnp.where(first > t_first, inner, strength * times)


def start(
  schedule: schedules.Schedule, t: Array, z: Array, eps: Array, strength: Array
) -> Array:
  """The state at t [] from which editing of z [B, ...] with noise eps begins."""
  alpha = jnp.where(strength < 1, schedule.alpha(t), 0.0)
  return alpha * z + schedule.sigma(t) * eps


def inpainting(
  sampler: samplers.Sampler,
  schedule: schedules.Schedule,
  z: Array,
  eps: Array,
  keep: Array,
) -> samplers.Sampler:
  """`sampler`, reset to z [B, h, w, Z] noised with eps where keep bool [B, h, w]."""
  held = jnp.broadcast_to(keep[..., None], z.shape)

  def step(denoise, x, carry, t, s, keys):
    x, carry = sampler.step(denoise, x, carry, t, s, keys)
    return jnp.where(held, schedule.alpha(s) * z + schedule.sigma(s) * eps, x), carry

  return samplers.Sampler(sampler.init, step)


def invert(
  denoise: guidance.Denoise,
  sampler: samplers.Sampler,
  times: Array,
  z: Array,
  keys: Array,
) -> tuple[Array, PyTree]:
  """The state at times[0] that leads to z [B, ...], and the sampler's carry there.

  `samplers.integrate` from both along `times` returns to z. At t = 0 the output may be
  undefined: the network is called at the lowest time above 0.
  """

  def above_0(x, t):
    return denoise(x, jnp.maximum(t, times[-2]))

  start = sampler.init(z)
  return samplers.integrate(above_0, sampler, times[::-1], z, start, keys)[0]


def slerp(first: Array, second: Array, share: Array) -> Array:
  """Spherical interpolation: first [B, ...] at share [B] = 0, second at share = 1.

  Between two Gaussian draws it keeps their norm, which a mean does not. Exact at both
  ends. Source: Shoemake 1985 section 3.3; Song et al. 2020 appendix D.5.
  """
  axes = tuple(range(1, first.ndim))
  share = schedules.expand(share, first)
  inner = (first * second).sum(axes, keepdims=True)
  sizes = (first**2).sum(axes, keepdims=True) * (second**2).sum(axes, keepdims=True)
  cosine = jnp.clip(inner / jnp.sqrt(sizes), -1.0, 1.0)
  angle = jnp.maximum(jnp.arccos(cosine), 1e-4)
  near, far = (jnp.sin(s * angle) / jnp.sin(angle) for s in (1.0 - share, share))
  return near * first + far * second


def keep_latents(change: Array, factor: int) -> Array:
  """bool [B, H, W], True where pixels may change -> bool [B, h, w], latents to keep.

  A latent is kept if none of its factor x factor pixels may change.
  """
  batch, height, width = change.shape
  blocks = change.reshape(batch, height // factor, factor, width // factor, factor)
  return ~blocks.any((2, 4))
