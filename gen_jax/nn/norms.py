"""Normalisation; statistics in float32 for every compute dtype.

In bf16 the variance loses three digits, which changes the loss.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import ranges
from gen_jax.types import Array

# x [..., C] -> its means over some axes, in a shape that broadcasts with x.
Average = Callable[[Array], Array]


def over_channels(x: Array) -> Array:
  """The mean over the last axis, [..., 1]."""
  return x.mean(-1, keepdims=True)


@functools.cache
def over_groups(num_groups: int) -> Average:
  """The mean over all axes but the first, per group of channels: [B, 1, ..., C].

  Averages space first, per channel: the vector unit then adds C numbers at once, not
  C / num_groups.
  """

  def average(x: Array) -> Array:
    batch_size, channels = x.shape[0], x.shape[-1]
    means = x.reshape(batch_size, -1, channels).mean(1)
    means = means.reshape(batch_size, num_groups, -1).mean(-1)
    means = jnp.repeat(means, channels // num_groups, axis=-1)
    return means.reshape(batch_size, *(1,) * (x.ndim - 2), channels)

  return average


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def standardise(
  x: Array, average: Average, eps: ranges.PositiveConstant, centre: bool
) -> Array:
  """x / rms(x), with the mean subtracted first if `centre`; float32.

  The gradient is explicit: with y = standardise(x) and r = 1 / rms,

      dx = r (dy - mean(dy) - y mean(y dy)),    without mean(dy) if not centred,

  and y recomputed from x. Automatic differentiation gives loops that read x many more
  times.
  """
  return _standardise(x, average, eps, centre)[0]


def _standardise(x, average, eps, centre):
  wide = x.astype(jnp.float32)
  mean = average(wide) if centre else jnp.float32(0.0)
  y = wide - mean
  rate = jax.lax.rsqrt(average(jnp.square(y)) + eps)
  return y * rate, (x, mean, rate)


def _standardise_gradient(average, eps, centre, residuals, dy):
  del eps
  x, mean, rate = residuals
  y = (x.astype(jnp.float32) - mean) * rate
  dx = dy - y * average(y * dy)
  if centre:
    dx = dx - average(dy)
  return ((dx * rate).astype(x.dtype),)


standardise.defvjp(_standardise, _standardise_gradient)


def _parameter(init):
  return nn.with_logical_partitioning(init, ("norm",))


class LayerNorm(nn.Module):
  """(x - mean) / std over the last axis. Ba et al. 2016 (arXiv:1607.06450)."""

  eps: ranges.PositiveConstant = 1e-5
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:
    width = (x.shape[-1],)
    scale = self.param("scale", _parameter(nn.initializers.ones_init()), width)
    y = standardise(x, over_channels, self.eps, True)
    y = y * jnp.broadcast_to(scale, y.shape)
    if self.use_bias:
      bias = self.param("bias", _parameter(nn.initializers.zeros_init()), width)
      y = y + jnp.broadcast_to(bias, y.shape)
    return y.astype(x.dtype)


class RMSNorm(nn.Module):
  """x / rms(x) over the last axis. Zhang & Sennrich 2019 (arXiv:1910.07467)."""

  eps: ranges.PositiveConstant = 1e-6

  @nn.compact
  def __call__(self, x: Array) -> Array:
    width = (x.shape[-1],)
    scale = self.param("scale", _parameter(nn.initializers.ones_init()), width)
    y = standardise(x, over_channels, self.eps, False)
    return (y * jnp.broadcast_to(scale, y.shape)).astype(x.dtype)


class GroupNorm(nn.Module):
  """LayerNorm over space and one group of channels. Wu & He 2018 (arXiv:1803.08494)."""

  num_groups: int = 32
  eps: ranges.PositiveConstant = 1e-5

  @nn.compact
  def __call__(self, x: Array) -> Array:
    channels = x.shape[-1]
    scale = self.param("scale", _parameter(nn.initializers.ones_init()), (channels,))
    bias = self.param("bias", _parameter(nn.initializers.zeros_init()), (channels,))
    y = standardise(x, over_groups(self.num_groups), self.eps, True)
    y = y * jnp.broadcast_to(scale, y.shape) + jnp.broadcast_to(bias, y.shape)
    return y.astype(x.dtype)
