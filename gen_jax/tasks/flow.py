"""Inversion, interpolation and likelihood by the ODE of a trained diffusion model."""

import jax
import jax.numpy as jnp

from gen_jax import rng
from gen_jax.diffusion import editing, guidance, likelihood, multistep, samplers
from gen_jax.diffusion import schedule as schedules
from gen_jax.tasks import diffusion
from gen_jax.types import Array, Batch, Params, PyTree


def redraw(
  task: diffusion.Diffusion,
  sampling: diffusion.Sampling,
  params: Params,
  frozen: PyTree,
  source: PyTree,
  prompt: PyTree,
  keys: Array,
  image: Array,
  strength: Array,
  vary: Array,
  negative: PyTree | None = None,
) -> Array:
  """Inverts images under their own captions and draws them again under other prompts.

  Both directions use `belm` at the same guidance: under the same prompt an image comes
  back exactly, up to the codec's own error.

  Args:
    source: captions of the images, [B, S].
    image: float32 [B, H, W, C] in [-1, 1].
    strength: float32 [] in [0, 1], how far they are inverted, 1 is to noise; traced.
    vary: float32 [] in [0, 1], how far the noise found is rotated towards new noise;
      traced.
  """
  z = task.codec.encode(frozen, image, rng.fold_in(keys, 1))
  times = diffusion.times(task, sampling)
  times = editing.shortened(times, strength, task.t_first)
  sampler = multistep.belm(task.schedule)
  up, down = (
    diffusion.guided(task, sampling, params, frozen, c, negative)
    for c in (source, prompt)
  )
  x, carry = editing.invert(up, sampler, times, z, keys)
  fresh = samplers.noise(task.schedule, times[0], rng.fold_in(keys, 2), z.shape[1:])
  x = editing.slerp(x, fresh, jnp.broadcast_to(vary, z.shape[:1]))
  # New noise invalidates the multistep history: re-initialise the carry.
  carry = jax.tree.map(
    lambda new, old: jnp.where(vary > 0, new, old), sampler.init(x), carry
  )
  (x, _), _ = samplers.integrate(down, sampler, times, x, carry, keys)
  return diffusion.decode(task, sampling, frozen, jnp.where(strength > 0, x, z))


def interpolate(
  task: diffusion.Diffusion,
  sampling: diffusion.Sampling,
  params: Params,
  frozen: PyTree,
  prompts: tuple[PyTree, PyTree],
  keys: tuple[Array, Array],
  share: Array,
  shape: tuple[int, ...],
  negative: PyTree | None = None,
) -> Array:
  """Draws images between the two that `diffusion.draw` makes from prompts and keys.

  Interpolates predictions, not the text encoder's states, which mean nothing where one
  of the prompts is padding. Noise is interpolated on the sphere.

  Args:
    prompts: two, each [B, S].
    keys: two, each [B]; steps that draw noise use the first.
    share: float32 [B] in [0, 1]: 0 is the first image, 1 the second.
  """
  first, second = (
    diffusion.guided(task, sampling, params, frozen, c, negative) for c in prompts
  )
  times = diffusion.times(task, sampling)
  split = [rng.split(k, 2) for k in keys]
  start, end = (samplers.noise(task.schedule, times[0], k, shape) for k, _ in split)
  z = editing.slerp(start, end, share)
  denoise = guidance.guide(second, first, schedules.expand(share, z))
  sampler = sampling.sampler(task.schedule)
  z, _ = samplers.sample(denoise, sampler, times, z, split[0][1])
  return diffusion.decode(task, sampling, frozen, z)


def bits_per_dim(
  task: diffusion.Diffusion,
  params: Params,
  frozen: PyTree,
  batch: Batch,
  keys: Array,
  num_steps: int,
) -> likelihood.Path:
  """Bits per dimension of images of bytes.

  An upper bound: uniform noise of one byte's width (dequantisation) turns probability
  into density. For codecs that scale each dimension by itself. Source: Theis et al.
  2016 (arXiv:1511.01844) section 3.1.

  Args:
    batch: image float32 [B, H, W, C], bytes / 127.5 - 1, and its prompt.
    num_steps: see `likelihood.path`; the probes are random signs.

  Returns:
    The path whose end is float32 [B], in bits.
  """
  width = 1.0 / 127.5
  byte_keys, probe_keys = rng.split(keys, 2)
  x = batch["image"]
  spread = jax.vmap(lambda k: jax.random.uniform(k, x.shape[1:]))(byte_keys) - 0.5
  z, stretch = jax.jvp(
    lambda x: task.codec.encode(frozen, x, keys),
    (x + width * spread,),
    (jnp.ones_like(x),),
  )
  denoise = task.denoiser(params, frozen, task.conditioning.of(batch))
  way = likelihood.path(denoise, task.schedule, z, probe_keys, num_steps)

  def end(state):
    nats = way.end(state) + jnp.log(jnp.abs(stretch)).sum((1, 2, 3))
    return -(nats / x[0].size + jnp.log(width)) / jnp.log(2.0)

  return way._replace(end=end)
