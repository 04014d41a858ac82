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
  """Keys and values of one layer, [B, K, S, Dh] each; position p is in slot p mod S.

  Heads come before slots, so that decoding multiplies the cache as it lies in memory.
  """

  key: Array
  value: Array


# (cache, new) -> what is attended to, and the cache with the new keys and values in it.
Remember = Callable[[KV, KV], tuple[KV, KV]]


def write(cache: KV, new: KV, start: Array) -> KV:
  """Writes new [B, K, T, Dh] into slots start[b] .. start[b] + T - 1 of row b.

  One token goes round (slot start mod S); several must fit.
  """
  if new.key.shape[2] == 1:
    start = start % cache.key.shape[2]

  def row(buffer, update, at):
    return jax.lax.dynamic_update_slice(buffer, update, (0, at, 0))

  return jax.tree.map(lambda b, u: jax.vmap(row)(b, u, start), cache, new)


def last_ones(new: KV, lengths: Array, num_slots: int) -> KV:
  """A cache of the last `num_slots` of lengths[b] positions; new [B, K, T, Dh]."""
  last = lengths[:, None] - 1
  slots = jnp.arange(num_slots)[None, :]
  place = last - (last - slots) % num_slots  # negative: nothing there
  place = jnp.maximum(place, 0)[:, None, :, None]
  return jax.tree.map(lambda x: jnp.take_along_axis(x, place, axis=2), new)


def remembered(positions: Array, num_slots: int, window: int | None = None) -> Array:
  """bool [B, 1, T, S]: which slots of a cache a query at a position sees.

  Those that hold its own position and what came before, or the last `window` of that.
  Whatever a padded prompt left in the others is overwritten before a query sees it.
  """
  at = positions[:, None, :, None]
  held = at - (at - jnp.arange(num_slots)[None, None, None, :]) % num_slots
  mask = held >= 0
  return mask if window is None else mask & (held > at - window)


def causal(positions: Array, num_slots: int, window: int | None = None) -> Array:
  """bool [B, 1, T, S]: a query at p sees positions 0 .. p, or the last `window`."""
  slots = jnp.arange(num_slots)[None, None, None, :]
  at = positions[:, None, :, None]
  mask = slots <= at
  return mask if window is None else mask & (slots > at - window)


def same_segment(segments: Array) -> Array:
  """bool [B, 1, T, T] from int [B, T]: whether two tokens are of one document."""
  return segments[:, None, :, None] == segments[:, None, None, :]


def attend(
  query: Array, keyvalue: KV, mask: Array | None, *, num_blocks: int = 1
) -> Array:
  """softmax(q k^T / sqrt(Dh)) v, softmax in float32.

  The gradient is written out (Dao et al. 2022, arXiv:2205.14135, appendix B.2): with
  the probabilities P kept, dS = P (dP - sum(dO O)) takes one pass where automatic
  differentiation takes several.

  Args:
    query: [B, T, N, Dh].
    keyvalue: [B, K, S, Dh] each, K dividing N.
    mask: bool, broadcastable to [B, 1, T, S]; True may be seen. None: all.
    num_blocks: promise that T = S and nothing after a query's own slot may be seen:
      queries are taken in this many blocks, each against the keys up to its end.

  Returns:
    [B, T, N, Dh].
  """
  batch, length, heads, dim = query.shape
  key, value = keyvalue
  num_kv_heads, num_slots = key.shape[1:3]
  groups = heads // num_kv_heads
  query = jnp.swapaxes(query * dim**-0.5, 1, 2)
  query = query.reshape(batch, num_kv_heads, groups, length, dim)
  if mask is not None:
    mask = jnp.broadcast_to(mask, (*mask.shape[:2], length, num_slots))
  blocks = []
  for i in range(num_blocks):
    start, stop = i * length // num_blocks, (i + 1) * length // num_blocks
    seen = num_slots if num_blocks == 1 else stop
    # Query heads that share keys are more rows of one matrix, [B, K, G t, Dh].
    rows = query[..., start:stop, :].reshape(batch, num_kv_heads, -1, dim)
    block_mask = None
    if mask is not None:
      block_mask = jnp.tile(mask[:, :, start:stop, :seen], (1, 1, groups, 1))
    out = _attend(rows, key[:, :, :seen], value[:, :, :seen], block_mask)
    blocks.append(out.reshape(batch, heads, stop - start, dim))
  return jnp.swapaxes(jnp.concatenate(blocks, 2), 1, 2)


@jax.custom_vjp
def _attend(query, key, value, mask):
  """[B, K, R, Dh] scaled already, [B, K, S, Dh] twice, [B, 1, R, S]."""
  return _attend_forward(query, key, value, mask)[0]


def _attend_forward(query, key, value, mask):
  scores = jnp.einsum("bkrd,bksd->bkrs", query, key).astype(jnp.float32)
  if mask is not None:
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
  probs = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
  out = jnp.einsum("bkrs,bksd->bkrd", probs, value)
  return out, (query, key, value, probs, out)


def _attend_gradient(residuals, grad):
  query, key, value, probs, out = residuals
  dvalue = jnp.einsum("bkrs,bkrd->bksd", probs, grad)
  dprobs = jnp.einsum("bkrd,bksd->bkrs", grad, value).astype(jnp.float32)
  mean = (grad.astype(jnp.float32) * out).sum(-1, keepdims=True)
  dscores = (probs * (dprobs - mean)).astype(query.dtype)
  dquery = jnp.einsum("bkrs,bksd->bkrd", dscores, key)
  dkey = jnp.einsum("bkrs,bkrd->bksd", dscores, query)
  return dquery, dkey, dvalue, None


_attend.defvjp(_attend_forward, _attend_gradient)


class Attention(nn.Module):
  """Multi-head attention of x to itself, or to `source`. [B, T, D] -> [B, T, D].

  `num_blocks` promises a causal mask: see `attend`.
  """

  num_heads: int
  head_dim: int
  num_kv_heads: int | None = None
  use_bias: bool = True
  out_bias: bool | None = None  # None: as use_bias
  rotary: Callable[[Array, Array], Array] | None = None
  num_blocks: int = 1
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
    remember: Remember | None = None,
  ) -> tuple[Array, KV | None]:
    """Returns the output and, where `cache` was given, the cache with x written in.

    Args:
      x: [B, T, D].
      source: [B, S, D'] for cross-attention; None is self-attention.
      mask: bool, broadcastable to [B, 1, T, S].
      positions: int [B, T]; needed with rotary embedding.
      cache: what came before; needs `remember`.
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
    new = KV(jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2))
    if cache is not None:
      new, cache = remember(cache, new)
    y = attend(query, new, mask, num_blocks=self.num_blocks)  # [B, T, N, Dh]
    out = linear.dense(
      x.shape[-1],
      ("heads", "head_dim", "embed"),
      name="out",
      axis=(-2, -1),
      use_bias=self.use_bias if self.out_bias is None else self.out_bias,
      init=self.out_init,
      dtype=self.dtype,
    )(y)
    return out, cache
