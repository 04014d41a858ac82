"""Normalisation; statistics in float32 whatever the compute dtype.

Statistics in bf16 lose three digits of the variance, which shows in the loss.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.types import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def standardise(x: Array, axes: tuple[int, ...], eps: float, centre: bool) -> Array:
  """x / rms(x) over `axes`, after the mean is taken away if `centre`; float32.

  The gradient is written out: with y = standardise(x) and r = 1 / rms,

      dx = r (dy - mean(dy) - y mean(y dy)),    without mean(dy) where not centred,

  and y is had from x again. What automatic differentiation leaves is fused into loops
  that go over x many more times.
  """
  return _standardise(x, axes, eps, centre)[0]


def _standardise(x, axes, eps, centre):
  wide = x.astype(jnp.float32)
  mean = wide.mean(axes, keepdims=True) if centre else 0.0
  y = wide - mean
  rate = jax.lax.rsqrt(jnp.square(y).mean(axes, keepdims=True) + eps)
  return y * rate, (x, mean, rate)


def _standardise_gradient(axes, eps, centre, residuals, dy):
  del eps
  x, mean, rate = residuals
  y = (x.astype(jnp.float32) - mean) * rate
  dx = dy - y * (y * dy).mean(axes, keepdims=True)
  if centre:
    dx = dx - dy.mean(axes, keepdims=True)
  return ((dx * rate).astype(x.dtype),)


standardise.defvjp(_standardise, _standardise_gradient)


def _parameter(init):
  return nn.with_logical_partitioning(init, ("norm",))


class LayerNorm(nn.Module):
  """(x - mean) / std over the last axis. Ba et al. 2016 (arXiv:1607.06450)."""

  eps: float = 1e-5
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:
    width = (x.shape[-1],)
    scale = self.param("scale", _parameter(nn.initializers.ones_init()), width)
    y = standardise(x, (-1,), self.eps, True)
    y = y * jnp.broadcast_to(scale, y.shape)
    if self.use_bias:
      bias = self.param("bias", _parameter(nn.initializers.zeros_init()), width)
      y = y + jnp.broadcast_to(bias, y.shape)
    return y.astype(x.dtype)


class RMSNorm(nn.Module):
  """x / rms(x) over the last axis. Zhang & Sennrich 2019 (arXiv:1910.07467)."""

  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: Array) -> Array:
    width = (x.shape[-1],)
    scale = self.param("scale", _parameter(nn.initializers.ones_init()), width)
    y = standardise(x, (-1,), self.eps, False)
    return (y * jnp.broadcast_to(scale, y.shape)).astype(x.dtype)


class GroupNorm(nn.Module):
  """LayerNorm over space and one group of channels. Wu & He 2018 (arXiv:1803.08494)."""

  num_groups: int = 32
  eps: float = 1e-5

  @nn.compact
  def __call__(self, x: Array) -> Array:
    channels = x.shape[-1]
    scale = self.param("scale", _parameter(nn.initializers.ones_init()), (channels,))
    bias = self.param("bias", _parameter(nn.initializers.zeros_init()), (channels,))
    y = x.reshape(x.shape[0], -1, self.num_groups, channels // self.num_groups)
    y = standardise(y, (1, 3), self.eps, True).reshape(x.shape)
    y = y * jnp.broadcast_to(scale, y.shape) + jnp.broadcast_to(bias, y.shape)
    return y.astype(x.dtype)
