"""Attention, its masks, and the explicit key-value cache.

Heads: N query heads share K <= N key-value heads (grouped-query attention, Ainslie et
al. 2023, arXiv:2305.13245); K = N is Vaswani et al. 2017.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import sharding
from gen_jax.nn import linear
from gen_jax.types import Array


class KV(NamedTuple):
  """Keys and values of one layer, [B, S, K, Dh] each; slot index = position."""

  key: Array
  value: Array


def write(cache: KV, new: KV, start: Array) -> KV:
  """Writes new [B, T, K, Dh] into slots start[b] .. start[b] + T - 1 of row b."""

  def row(buffer, update, at):
    return jax.lax.dynamic_update_slice(buffer, update, (at, 0, 0))

  return jax.tree.map(lambda b, u: jax.vmap(row)(b, u, start), cache, new)


def causal(positions: Array, num_slots: int, window: int | None = None) -> Array:
  """bool [B, 1, T, S]: a query at position p sees slots 0 .. p, or the last `window`.

  Slots beyond the query's own position are never seen, so a cache needs no other mask:
  whatever a padded prompt left there is overwritten before a query reaches it.
  """
  slots = jnp.arange(num_slots)[None, None, None, :]
  at = positions[:, None, :, None]
  mask = slots <= at
  return mask if window is None else mask & (slots > at - window)


def same_segment(segments: Array) -> Array:
  """bool [B, 1, T, T] from int [B, T]: whether two tokens are of one document."""
  return segments[:, None, :, None] == segments[:, None, None, :]


def attend(query: Array, keyvalue: KV, mask: Array | None) -> Array:
  """softmax(q k^T / sqrt(Dh)) v, softmax in float32.

  Args:
    query: [B, T, N, Dh].
    keyvalue: [B, S, K, Dh] each, K dividing N.
    mask: bool, broadcastable to [B, N, T, S]; True may be seen. None: all.

  Returns:
    [B, T, N, Dh].
  """
  return jax.nn.dot_product_attention(
    query, keyvalue.key, keyvalue.value, mask=mask, implementation="xla"
  )


class Attention(nn.Module):
  """Multi-head attention of x to itself, or to `source`. [B, T, D] -> [B, T, D]."""

  num_heads: int
  head_dim: int
  num_kv_heads: int | None = None
  use_bias: bool = True
  rotary: Callable[[Array, Array], Array] | None = None
  init: linear.Init | None = None
  out_init: linear.Init | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Array,
    source: Array | None = None,
    *,
    mask: Array | None = None,
    positions: Array | None = None,
    cache: KV | None = None,
  ) -> tuple[Array, KV | None]:
    """Returns the output and, where `cache` was given, the cache with x written in.

    Args:
      x: [B, T, D].
      source: [B, S, D'] for cross-attention; None is self-attention.
      mask: bool, broadcastable to [B, N, T, S].
      positions: int [B, T]; needed with a cache or rotary embedding.
      cache: the slots to write to and attend over.
    """
    source = x if source is None else source
    num_kv_heads = self.num_kv_heads or self.num_heads

    def project(name, inputs, heads, axis):
      y = linear.dense(
        (heads, self.head_dim),
        ("embed", axis, "head_dim"),
        name=name,
        use_bias=self.use_bias,
        init=self.init,
        dtype=self.dtype,
      )(inputs)
      y = sharding.constrain(y, "batch", "length", "act_heads", None)
      return y

    query = project("query", x, self.num_heads, "heads")
    key = project("key", source, num_kv_heads, "kv_heads")
    value = project("value", source, num_kv_heads, "kv_heads")
    if self.rotary is not None:
      query, key = self.rotary(query, positions), self.rotary(key, positions)
    new = KV(key, value)
    if cache is not None:
      new = cache = write(cache, new, positions[:, 0])
    y = attend(query, new, mask)  # [B, T, N, Dh]
    out = linear.dense(
      x.shape[-1],
      ("heads", "head_dim", "embed"),
      name="out",
      axis=(-2, -1),
      use_bias=self.use_bias,
      init=self.out_init,
      dtype=self.dtype,
    )(y)
    return out, cache
