"""States between images and noise, seen as images: of unit variance, decoded."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from gen_jax import rng
from gen_jax.diffusion import corrupt
from gen_jax.tasks import diffusion
from gen_jax.types import Array, Params, PyTree


def walk(
  task: diffusion.Diffusion,
  sampling: diffusion.Sampling,
  params: Params,
  frozen: PyTree,
  prompt: PyTree,
  keys: Array,
  shape: tuple[int, ...],
  steps: Sequence[int],
) -> Array:
  """What `diffusion.draw` passes on its way from noise to images.

  Args:
    steps: after how many steps of the sampler, n numbers; 0 is the noise.

  Returns:
    float32 [n, B, ...].
  """
  given = (task, sampling, params, frozen, prompt, keys, shape)
  noise, later, _ = diffusion.trajectory(*given, trace=lambda z: z)
  chosen = jnp.array(steps)
  states = jnp.concatenate([noise[None], later])[chosen]
  return _seen(task, sampling, frozen, states, diffusion.times(task, sampling)[chosen])


def noised(
  task: diffusion.Diffusion,
  sampling: diffusion.Sampling,
  frozen: PyTree,
  images: Array,
  keys: Array,
  at: Array,
) -> Array:
  """Images on the forward process's way to noise.

  Args:
    images: float32 [B, H, W, C] in [-1, 1].
    keys: [B], of the noise, which is the same at all times.
    at: times float32 [n].

  Returns:
    float32 [n, B, ...].
  """
  z = task.codec.encode(frozen, images, rng.fold_in(keys, 1))
  eps = rng.normal(rng.fold_in(keys, 2), z.shape[1:])

  def state(t):
    return corrupt.corrupt(task.schedule, jnp.full(len(z), t), z, eps)

  return _seen(task, sampling, frozen, jax.lax.map(state, at), at)


def _seen(task, sampling, frozen, states: Array, at: Array) -> Array:
  """States [n, B, ...] at times [n]; a variance-exploding one would be too bright."""
  std = jnp.hypot(task.schedule.alpha(at), task.schedule.sigma(at))
  scaled = states / std.reshape(-1, *[1] * (states.ndim - 1))
  return jax.lax.map(lambda z: diffusion.decode(task, sampling, frozen, z), scaled)
