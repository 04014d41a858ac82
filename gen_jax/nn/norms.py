"""Normalisation; statistics in float32 whatever the compute dtype.

Statistics in bf16 lose three digits of the variance, which shows in the loss.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.types import Array


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
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
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
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
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
    y = x.astype(jnp.float32).reshape(
      x.shape[0], -1, self.num_groups, channels // self.num_groups
    )
    y = y - y.mean((1, 3), keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean((1, 3), keepdims=True) + self.eps)
    y = y.reshape(x.shape)
    y = y * jnp.broadcast_to(scale, y.shape) + jnp.broadcast_to(bias, y.shape)
    return y.astype(x.dtype)
