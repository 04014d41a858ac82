"""Editing: a picture's latent z as the start of sampling, whole or in part.

    strength   sampling starts at strength times the grid's first time, from z noised
               to there; every time of the grid shrinks with it, so that any number of
               steps and any sampler serve, and another strength does not recompile
    keep       where it is true, every step ends on z noised to where the step ends

Strength 1 forgets z: alpha is not quite 0 at the first time, and text-to-image never
saw it. Strength 0 is z itself.

Sources: Meng et al. 2021 (arXiv:2108.01073); Lugmayr et al. 2022 (2201.09865) eq. 8.
"""

import jax.numpy as jnp

from gen_jax.diffusion import samplers
from gen_jax.diffusion import schedule as schedules
from gen_jax.types import Array


def start(
  schedule: schedules.Schedule, t: Array, z: Array, eps: Array, strength: Array
) -> Array:
  """The state at t [] from which editing of z [B, ...] with noise eps begins."""
  alpha = jnp.where(strength < 1, schedule.alpha(t), 0.0)
  return alpha * z + schedule.sigma(t) * eps


def keeping(
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


def keep_latents(change: Array, factor: int) -> Array:
  """bool [B, H, W], True where pixels are to change -> bool [B, h, w], what to keep.

  A latent is kept if none of its factor x factor pixels is to change.
  """
  batch, height, width = change.shape
  blocks = change.reshape(batch, height // factor, factor, width // factor, factor)
  return ~blocks.any((2, 4))
