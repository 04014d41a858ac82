"""Attention, masks, and the explicit key-value cache.

Heads: N query heads share K <= N key-value heads (grouped-query attention, Ainslie et
al. 2023, arXiv:2305.13245); K = N is Vaswani et al. 2017.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import sharding
from gen_jax.nn import cpu, linear, widths
from gen_jax.types import Array


class KV(NamedTuple):
  """Keys and values of one layer, [B, K, S, Dh] each; position p is in slot p mod S.

  Heads precede slots, so that decoding reads the cache without a transposition.
  """

  key: Array
  value: Array


# (cache, new) -> the keys and values to attend to, and the updated cache.
CacheUpdate = Callable[[KV, KV], tuple[KV, KV]]


def write(cache: KV, new: KV, start: Array) -> KV:
  """Writes new [B, K, T, Dh] into slots start[b] .. start[b] + T - 1 of sequence b.

  One token wraps around (slot start mod S); several must fit.
  """
  if new.key.shape[2] == 1:
    start = start % cache.key.shape[2]

  def row(buffer, update, at):
    return jax.lax.dynamic_update_slice(buffer, update, (0, at, 0))

  return jax.tree.map(lambda b, u: jax.vmap(row)(b, u, start), cache, new)


def tail_cache(new: KV, lengths: Array, num_slots: int) -> KV:
  """A cache of the last `num_slots` of lengths[b] positions of new [B, K, T, Dh]."""
  last = lengths[:, None] - 1
  slots = jnp.arange(num_slots)[None, :]
  place = last - (last - slots) % num_slots  # negative: an empty slot
  place = jnp.maximum(place, 0)[:, None, :, None]
  return jax.tree.map(lambda x: jnp.take_along_axis(x, place, axis=2), new)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
  """An attention mask: a key is visible if every given field allows it.

  Attributes:
    allowed: bool, broadcastable to [B, 1, T, S].
    segments: int [B, T], the document of each token: no attention across documents.
    at: int [B, T], positions of queries; None: their slots.
    held: int [B, S], positions of keys, negative for an empty slot; None: their slots.
      Positions differ from slots only with a cache. There `allowed` is the mask;
      positions serve scores that depend on them.
    is_causal: the query in slot t sees the keys in slots 0 .. t; T = S.
    window: only the last `window` of these, its own included.
  """

  allowed: Array | None = None
  segments: Array | None = None
  at: Array | None = None
  held: Array | None = None
  is_causal: bool = dataclasses.field(default=False, metadata={"static": True})
  window: int | None = dataclasses.field(default=None, metadata={"static": True})

  def materialize(self, rows: Array, columns: Array) -> Array | None:
    """bool [B, 1, t, s] (B may be 1), visible keys; None: all are.

    Args:
      rows, columns: int [t] and [s], slots of queries and keys.
    """
    parts = []
    if self.is_causal:
      at, slots = rows[None, None, :, None], columns[None, None, None, :]
      parts.append(slots <= at)
      if self.window is not None:
        parts.append(slots > at - self.window)
    if self.segments is not None:
      own, other = (jnp.take(self.segments, x, axis=1) for x in (rows, columns))
      parts.append(own[:, None, :, None] == other[:, None, None, :])
    if self.allowed is not None:
      allowed = self.allowed
      for axis, slots in ((2, rows), (3, columns)):
        if allowed.shape[axis] > 1:
          allowed = jnp.take(allowed, slots, axis=axis)
      parts.append(allowed)
    if not parts:
      return None
    seen = functools.reduce(operator.and_, parts)
    return jnp.broadcast_to(seen, (*seen.shape[:2], len(rows), len(columns)))

  def distances(self, rows: Array, columns: Array) -> Array:
    """int [B, 1, t, s] (B may be 1), the query's position minus the key's.

    For position-dependent scores such as ALiBi's; valid with and without a cache.
    """
    at = rows[None] if self.at is None else jnp.take(self.at, rows, axis=1)
    held = columns[None] if self.held is None else jnp.take(self.held, columns, axis=1)
    return at[:, None, :, None] - held[:, None, None, :]


EVERYTHING = Mask()


def cache_mask(at: Array, num_slots: int, window: int | None = None) -> Mask:
  """The mask of a cache for queries at positions int [B, T].

  A query sees the slots of its own and all earlier positions, or of the last `window`.
  Padding in other slots is overwritten before a query sees it.
  """
  last = at[:, -1:]
  held = last - (last - jnp.arange(num_slots)[None]) % num_slots
  behind = at[:, None, :, None] - held[:, None, None, :]
  allowed = (held >= 0)[:, None, None, :] & (behind >= 0)
  if window is not None:
    allowed &= behind < window
  return Mask(allowed, at=at, held=held)


# (query [B, T, N, Dh], keys and values [B, K, S, Dh], mask) -> [B, T, N, Dh].
Attend = Callable[[Array, KV, Mask], Array]


def exact(compute: Attend) -> Attend:
  """Declares that `compute` has the same result as `attend`.

  Only such functions may be swapped in a trained model, exported, and replaced by
  `attend` with a cache.
  """
  vars(compute)["is_exact"] = True
  return compute


def is_exact(compute: Attend) -> bool:
  """Whether `compute` was declared `exact`, whatever arguments are bound to it."""
  while isinstance(compute, functools.partial):
    compute = compute.func
  return getattr(compute, "is_exact", False)


def as_rows(query: Array, num_kv_heads: int) -> Array:
  """Scales queries; [B, T, N, Dh] -> [B, K, G T, Dh], N = K G.

  The query heads that share keys become rows of one matrix.
  """
  dim = query.shape[-1]
  query = jnp.swapaxes(query * dim**-0.5, 1, 2)
  return query.reshape(len(query), num_kv_heads, -1, dim)


def from_rows(rows: Array, num_heads: int) -> Array:
  """[B, K, G T, Dh] -> [B, T, N, Dh]."""
  return jnp.swapaxes(rows.reshape(len(rows), num_heads, -1, rows.shape[-1]), 1, 2)


def scores(rows: Array, key: Array, seen: Array | None) -> Array:
  """float32 [B, K, R, S]: products of queries and keys, the lowest float32 if masked.

  Args:
    rows: [B, K, G t, Dh], see `as_rows`.
    key: [B, K, S, Dh].
    seen: bool [B, 1, t, S], or None.
  """
  products = jnp.einsum("bkrd,bksd->bkrs", rows, key).astype(jnp.float32)
  if seen is None:
    return products
  seen = jnp.tile(seen, (1, 1, rows.shape[2] // seen.shape[2], 1))
  return jnp.where(seen, products, jnp.finfo(jnp.float32).min)


def pull_back(
  rows: Array, key: Array, value: Array, probs: Array, mean: Array, grad: Array
) -> tuple[Array, Array, Array]:
  """Gradients of softmax(q k^T) v with respect to q, k and v, given probabilities P.

  dS = P (dP - sum(dO O)) needs one pass; automatic differentiation needs several.
  Source: Dao et al. 2022 (arXiv:2205.14135) appendix B.2.

  Args:
    probs: [B, K, R, S].
    mean: float32 [B, K, R, 1], sum(dO O).
    grad: dO [B, K, R, Dh].
  """
  dvalue = jnp.einsum("bkrs,bkrd->bksd", probs.astype(rows.dtype), grad)
  dprobs = jnp.einsum("bkrd,bksd->bkrs", grad, value).astype(jnp.float32)
  dscores = (probs * (dprobs - mean)).astype(rows.dtype)
  drows = jnp.einsum("bkrs,bksd->bkrd", dscores, key)
  return drows, jnp.einsum("bkrs,bkrd->bksd", dscores, rows), dvalue


@exact
def attend(query: Array, keyvalue: KV, mask: Mask) -> Array:
  """softmax(q k^T / sqrt(Dh)) v in XLA, all scores at once, softmax in float32.

  The probabilities are kept for the gradient. Long causal sequences are computed in
  four blocks of queries, each against the keys up to its end.

  Args:
    query: [B, T, N, Dh].
    keyvalue: [B, K, S, Dh] each, K dividing N.

  Returns:
    [B, T, N, Dh].
  """
  length, heads = query.shape[1:3]
  key, value = keyvalue
  num_kv_heads, num_slots = key.shape[1:3]
  is_long = mask.is_causal and length % 4 == 0 and length >= 256
  num_blocks = 4 if is_long else 1
  blocks = []
  for i in range(num_blocks):
    start, stop = i * length // num_blocks, (i + 1) * length // num_blocks
    end = stop if is_long else num_slots
    seen = mask.materialize(jnp.arange(start, stop), jnp.arange(end))
    rows = as_rows(query[:, start:stop], num_kv_heads)
    out = _attend(rows, key[:, :, :end], value[:, :, :end], seen)
    blocks.append(from_rows(out, heads))
  return jnp.concatenate(blocks, 1)


@jax.custom_vjp
def _attend(rows, key, value, seen):
  """Scaled rows [B, K, R, Dh], key and value [B, K, S, Dh], seen [B, 1, t, S]."""

  def whole(*inputs):
    return _attend_forward(*inputs)[0]

  num_rows, num_slots = rows.shape[2], key.shape[2]
  piece = cpu.piece(num_rows, num_slots)
  if piece is None:
    return whole(rows, key, value, seen)
  in_pieces = functools.partial(cpu.attend, piece=piece, scores=scores)
  return jax.lax.platform_dependent(
    rows, key, value, seen, cpu=in_pieces, default=whole
  )


def _attend_forward(rows, key, value, seen):
  probs = jax.nn.softmax(scores(rows, key, seen), axis=-1).astype(rows.dtype)
  out = jnp.einsum("bkrs,bksd->bkrd", probs, value)
  return out, (rows, key, value, probs, out)


def _attend_gradient(residuals, grad):
  rows, key, value, probs, out = residuals
  mean = (grad.astype(jnp.float32) * out).sum(-1, keepdims=True)
  return *pull_back(rows, key, value, probs, mean, grad), None


_attend.defvjp(_attend_forward, _attend_gradient)


class Attention(nn.Module):
  """Multi-head attention of x to itself or to `source`. [B, T, D] -> [B, T, D].

  With a cache, `attend` replaces any `attention_impl` that is exact.
  """

  num_heads: int
  head_dim: int
  num_kv_heads: int | None = None
  use_bias: bool = True
  out_bias: bool | None = None  # None: as use_bias
  rotary: Callable[[Array, Array], Array] | None = None
  attention_impl: Attend = attend
  init: linear.Init | None = None  # type: ignore[assignment]  # linen's, not called
  out_init: linear.Init | None = None
  dtype: jnp.dtype = jnp.float32
  query_scale: float = 1.0  # besides 1 / sqrt(Dh), see `widths`

  @nn.compact
  def __call__(
    self,
    x: Array,
    source: Array | None = None,
    *,
    mask: Mask = EVERYTHING,
    positions: Array | None = None,
    cache: KV | None = None,
    cache_update: CacheUpdate | None = None,
  ) -> tuple[Array, KV | None]:
    """Returns the output and, if `cache` is given, the cache with x written in.

    Args:
      x: [B, T, D].
      source: [B, S, D'] for cross-attention; None is self-attention.
      mask: over the source's, or the cache's, keys.
      positions: int [B, T]; needed with rotary embedding.
      cache: keys and values of earlier tokens; needs `cache_update`.
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
    query = widths.times(query, self.query_scale)
    key = project("key", source, num_kv_heads, "kv_heads")
    value = project("value", source, num_kv_heads, "kv_heads")
    if self.rotary is not None:
      assert positions is not None
      query, key = self.rotary(query, positions), self.rotary(key, positions)
    new = KV(jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2))
    compute = self.attention_impl
    if cache is not None:
      assert cache_update is not None
      new, cache = cache_update(cache, new)
      compute = attend if is_exact(compute) else compute
    y = compute(query, new, mask)  # [B, T, N, Dh]
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
