"""Editing: an image's latent z as the start of sampling, whole or in part.

    strength   sampling starts at strength times the grid's first time, from z noised
               to there; the grid is drawn together to below that, so that any number
               of steps and any sampler serve, and another strength does not recompile
    keep       where it is true, every step ends on z noised to where the step ends

Strength 1 forgets z: alpha is not quite 0 at the first time, and text-to-image never
saw it. Strength 0 is z itself.

Inversion instead finds the noise from which a prompt would have drawn z: a sampler is
walked up its times. `ddim`, `euler` and `heun` come back from there nearly, `belm`
exactly.

Sources: Meng et al. 2021 (arXiv:2108.01073); Lugmayr et al. 2022 (2201.09865) eq. 8;
Song et al. 2020 (2010.02502) section 4.3; Mokady et al. 2022 (2211.09794) section 3.
"""

import jax.numpy as jnp

from gen_jax.diffusion import guidance, samplers
from gen_jax.diffusion import schedule as schedules
from gen_jax.types import Array, PyTree


def shortened(times: Array, strength: Array, t_first: float) -> Array:
  """A grid that starts at strength [] times its first time, of as many steps.

  Every time is drawn together towards t_first, the quietest that the network knows; all
  of them are scaled where even the start is below that.
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
  """`sampler`, held to z [B, h, w, Z] with noise eps where keep bool [B, h, w]."""
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

  `samplers.walk` from both, down the same times, is the way back. At t = 0 a network
  may say nothing of the noise: there it is asked for the lowest time above.
  """

  def above_0(x, t):
    return denoise(x, jnp.maximum(t, times[-2]))

  start = sampler.init(z)
  return samplers.integrate(above_0, sampler, times[::-1], z, start, keys)[0]


def slerp(first: Array, second: Array, share: Array) -> Array:
  """From first [B, ...] at share [B] = 0 to second at 1, on the arc between them.

  Two draws of noise meet in draws of noise, which their mean would not be. The ends are
  exact. Source: Shoemake 1985 section 3.3; Song et al. 2020 appendix D.5.
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
  """bool [B, H, W], True where pixels are to change -> bool [B, h, w], what to keep.

  A latent is kept if none of its factor x factor pixels is to change.
  """
  batch, height, width = change.shape
  blocks = change.reshape(batch, height // factor, factor, width // factor, factor)
  return ~blocks.any((2, 4))
