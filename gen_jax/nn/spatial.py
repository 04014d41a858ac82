"""Layers over images [B, H, W, C], shared by UNets and autoencoders."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import ranges, sharding
from gen_jax.nn import attention, linear, mlp, norms
from gen_jax.types import Array, InputError


def constrain(x: Array) -> Array:
  """Constrains the sharding of image activations [B, H, W, C]."""
  return sharding.constrain(x, "batch", "space", "space", "act_channels")


def half(x: Array, *, padding: tuple[int, int] = (1, 1), **how: Any) -> Array:
  """Downsampling, a convolution of stride 2: [B, H, W, C] -> [B, H/2, W/2, C]."""
  return linear.conv(x.shape[-1], stride=2, padding=padding, **how)(x)


def double(x: Array, **how: Any) -> Array:
  """Upsampling, nearest then a convolution: [B, H, W, C] -> [B, 2 H, 2 W, C]."""
  x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
  return linear.conv(x.shape[-1], **how)(x)


class ResBlock(nn.Module):
  """A residual block of two convolutions; adds the time embedding, if given, between.

  Source: Ho et al. 2020 (arXiv:2006.11239) appendix B.
  """

  channels: int
  num_groups: int = 32
  eps: ranges.PositiveConstant = 1e-5
  dropout: float = 0.0
  train: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, time: Array | None = None) -> Array:
    """x [B, H, W, C], time [B, D] -> [B, H, W, channels]; the residual starts at 0."""
    channels, dtype = self.channels, self.dtype
    norm = functools.partial(norms.GroupNorm, self.num_groups, self.eps)
    h = jax.nn.silu(norm(name="norm_in")(x))
    # Between the convolutions channels are sharded like the hidden units of an MLP.
    h = linear.conv(channels, ("conv_out", "mlp"), name="conv_in", dtype=dtype)(h)
    if time is not None:
      shift = linear.dense(channels, ("embed", "mlp"), name="time", dtype=dtype)
      h = h + shift(jax.nn.silu(time))[:, None, None, :]
    h = sharding.constrain(h, "batch", "space", "space", "act_mlp")
    h = jax.nn.silu(norm(name="norm_out")(h))
    h = nn.Dropout(self.dropout, deterministic=not self.train)(h)
    zero = linear.fan_in(0.0)
    h = linear.conv(
      channels, ("mlp", "conv_out"), name="conv_out", init=zero, dtype=dtype
    )(h)
    if x.shape[-1] != channels:
      x = linear.conv(channels, name="shortcut", window=1, dtype=dtype)(x)
    return constrain(x + h)


class SelfAttention(nn.Module):
  """Residual self-attention over all pixels. Ho et al. 2020 appendix B."""

  num_heads: int = 1
  num_groups: int = 32
  dtype: jnp.dtype = jnp.float32
  eps: ranges.PositiveConstant = 1e-6
  attention_impl: attention.Attend = attention.attend
  query_scale: float = 1.0

  @nn.compact
  def __call__(
    self, x: Array, states: Array | None = None, mask: Array | None = None
  ) -> Array:
    """[B, H, W, C] -> [B, H, W, C].

    Raises:
      InputError: states, which nothing here attends to.
    """
    del mask
    if states is not None:
      raise InputError(
        "network.attention=self_attention does not attend to text; take"
        " conditioning=labels or none, or network.attention=transformer"
      )
    batch_size, height, width, channels = x.shape
    h = norms.GroupNorm(self.num_groups, self.eps, name="norm")(x)
    h, _ = attention.Attention(
      num_heads=self.num_heads,
      head_dim=channels // self.num_heads,
      attention_impl=self.attention_impl,
      query_scale=self.query_scale,
      out_init=linear.fan_in(0.0),
      dtype=self.dtype,
      name="attention",
    )(h.reshape(batch_size, height * width, channels))
    return constrain(x + h.reshape(x.shape))


class SpatialTransformer(nn.Module):
  """Self-attention over pixels, cross-attention to the text, feed-forward; residual.

  Attributes:
    mlp: constructor of the feed-forward part.
    use_bias: of queries, keys and values.
    attention_impl: how attention is computed.

  Source: Rombach et al. 2022 (arXiv:2112.10752) appendix E.2.1.
  """

  num_heads: int = 1
  num_groups: int = 32
  dtype: jnp.dtype = jnp.float32
  mlp: Callable[..., nn.Module] = mlp.MLP
  use_bias: bool = True
  attention_impl: attention.Attend = attention.attend
  query_scale: float = 1.0

  @nn.compact
  def __call__(self, x: Array, states: Array | None, mask: Array | None) -> Array:
    """x [B, H, W, C], states [B, S, D], mask bool [B, S] -> [B, H, W, C]."""
    batch_size, height, width, channels = x.shape

    def attend(name, *inputs, mask=attention.EVERYTHING):
      return attention.Attention(
        num_heads=self.num_heads,
        head_dim=channels // self.num_heads,
        use_bias=self.use_bias,
        out_bias=True,
        attention_impl=self.attention_impl,
        query_scale=self.query_scale,
        dtype=self.dtype,
        name=name,
      )(*inputs, mask=mask)[0]

    def mix(name, init=None):  # not sharded over tensor, like its input and output
      axes = ("conv_in", "conv_out")
      return linear.dense(channels, axes, name=name, init=init, dtype=self.dtype)

    h = norms.GroupNorm(self.num_groups, 1e-6, name="norm")(x)
    h = h.reshape(batch_size, height * width, channels)
    h = mix("proj_in")(h)
    h = h + attend("self_attention", norms.LayerNorm(name="self_norm")(h))
    if states is not None:
      seen = attention.Mask(None if mask is None else mask[:, None, None, :])
      y = norms.LayerNorm(name="cross_norm")(h)
      h = h + attend("cross_attention", y, states, mask=seen)
    feed = self.mlp(hidden=4 * channels, use_bias=True, dtype=self.dtype, name="mlp")
    h = h + feed(norms.LayerNorm(name="mlp_norm")(h))
    h = mix("proj_out", linear.fan_in(0.0))(h)
    return constrain(x + h.reshape(x.shape))
