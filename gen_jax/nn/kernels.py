"""Attention kernels that do not keep all scores, unlike `attention.attend`.

    chunked   a chunk of keys at a time: memory is linear in the length
    ring      the same for sequences sharded over devices: keys rotate
    splash    jax's Pallas kernel for TPUs: skips masked blocks; gathers keys of
              sharded sequences
    cudnn     NVIDIA's kernel for GPUs

Online softmax: with m the largest score so far, keep sum exp(s - m) and
sum exp(s - m) v, and rescale both when m grows. The gradient keeps only
log sum exp(s) of each query and recomputes the probabilities.

Sources: Rabe & Staats 2021 (arXiv:2112.05682); Dao et al. 2022 (arXiv:2205.14135).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# At the top: later the command line may have dropped "tpu", and it cannot be imported.
from jax.experimental.pallas.ops.tpu import splash_attention as pallas

from gen_jax import collectives, ranges, sharding
from gen_jax.nn import attention
from gen_jax.types import Array, InputError


class _Sums(NamedTuple):
  """Softmax over the keys so far; float32, R rows of queries.

  Attributes:
    top: [B, K, R, 1], the largest score.
    norm: [B, K, R, 1], sum of exp(score - top).
    total: [B, K, R, Dh], sum of exp(score - top) value.
  """

  top: Array
  norm: Array
  total: Array


@attention.exact
@ranges.checked
def chunked(
  query: Array,
  keyvalue: attention.KV,
  mask: attention.Mask,
  *,
  chunk: ranges.Size = 512,
) -> Array:
  """`attention.attend`, `chunk` keys at a time in the forward and backward pass.

  Keeps one number per query and head for the gradient; `attend` keeps one per key.
  """
  rows = attention.as_rows(query, keyvalue.key.shape[1])
  at, slots = jnp.arange(query.shape[1]), jnp.arange(keyvalue.key.shape[2])
  out = _online(rows, keyvalue, at, slots, mask, chunk, collectives.Ring(None, 1))
  return attention.from_rows(out, query.shape[2])


@attention.exact
@ranges.checked
def ring(
  query: Array,
  keyvalue: attention.KV,
  mask: attention.Mask,
  *,
  chunk: ranges.Size = 512,
) -> Array:
  """Ring attention: `chunked` for sequences sharded along the mesh axis context.

  Each device keeps its queries; keys, values and their gradients rotate. T = S.
  Source: Liu et al. 2023 (arXiv:2310.01889).

  Raises:
    InputError: a mask given as a table.
  """
  if mask.allowed is not None:
    raise InputError(
      "attention_impl=ring needs a causal mask, window or segments; chunked takes any"
    )
  devices = sharding.ring("length")
  order = jnp.arange(query.shape[1])

  def local(query, key, value, at, slots, segments):
    rows = attention.as_rows(query, key.shape[1])
    own = dataclasses.replace(mask, segments=segments)
    out = _online(rows, attention.KV(key, value), at, slots, own, chunk, devices)
    return attention.from_rows(out, query.shape[2])

  heads = ("batch", "length", "act_heads", None)
  slots = ("batch", "act_heads", "length", None)
  # Slot and segment numbers are small: replicated over the length.
  names = heads, slots, slots, ("length",), ("length",), ("batch", None)
  run = sharding.local(local, *names)
  return run(query, *keyvalue, order, order, mask.segments)


def _head_mask(shape: tuple[int, int], mask: attention.Mask) -> Any:
  """The mask of a head [T, S]."""
  if not mask.is_causal:
    return pallas.FullMask(shape)
  return pallas.LocalMask(shape, ((mask.window or shape[0]) - 1, 0), offset=0)


@attention.exact
@ranges.checked
def splash(
  query: Array,
  keyvalue: attention.KV,
  mask: attention.Mask,
  *,
  block: ranges.Size = 512,
  interpret: bool = False,
) -> Array:
  """`attention.attend` by splash attention, `block` queries and keys at a time.

  With the length sharded along context, T = S, devices keep queries and gather keys.

  Args:
    interpret: interpret the kernel, on any platform.

  Raises:
    InputError: lengths per device that are not multiples of 128, or a mask given as a
      table.
  """
  if not interpret:
    sharding.require("tpu", "attention_impl=splash")
  parts = sharding.ring("length")
  length, num_slots = query.shape[1], keyvalue.key.shape[2]
  if mask.allowed is not None or length % (128 * parts.size) or num_slots % 128:
    raise InputError(
      f"attention_impl=splash needs lengths divisible by {128 * parts.size}, got"
      f" {length} and {num_slots}, and a causal mask, window or segments; chunked takes"
      " any"
    )
  one = _head_mask((length, num_slots), mask)
  size = math.gcd(math.gcd(length // parts.size, num_slots), block)
  names = ["block_q", "block_kv", "block_kv_compute", "block_q_dq", "block_kv_dq"]
  names += ["block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute"]
  blocks: dict[str, Any] = dict.fromkeys(names, size)

  def local(query, key, value, own, segments):
    # Heads are sharded already; all heads have the same mask.
    kernel = pallas.make_splash_mha(
      pallas.MultiHeadMask([one] * query.shape[2]),
      block_sizes=pallas.BlockSizes(**blocks),
      head_shards=1,
      q_seq_shards=parts.size,
      interpret=interpret,
    )
    kernel.fwd_mask_info = _own(kernel.fwd_mask_info, parts)
    kernel.dq_mask_info = _own(kernel.dq_mask_info, parts)
    kernel.dkv_mask_info = _own(kernel.dkv_mask_info, parts)
    key, value = (parts.gather(x, 2) for x in (key, value))
    query = jnp.swapaxes(query * query.shape[-1] ** -0.5, 1, 2)
    ids = None if segments is None else pallas.SegmentIds(own, segments)
    return jnp.swapaxes(jax.vmap(kernel)(query, key, value, ids), 1, 2)

  heads = ("batch", "length", "act_heads", None)
  slots = ("batch", "act_heads", "length", None)
  run = sharding.local(local, heads, slots, slots, ("batch", "length"), ("batch", None))
  return run(query, *keyvalue, mask.segments, mask.segments)


def _own(info, parts: collectives.Ring):
  """The part of splash attention's mask info for this device's queries."""
  if parts.size == 1:
    return info

  def cut(x, axis):
    size = x.shape[axis] // parts.size
    start = jax.lax.axis_index(parts.axis) * size
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis)

  axes = {"data_next": 1, "mask_next": 1, "block_mask": 1, "q_sequence": 0}
  tables = {name: getattr(info, name) for name in axes}
  return info._replace(
    **{name: cut(x, axes[name]) for name, x in tables.items() if x is not None}
  )


@attention.exact
def cudnn(query: Array, keyvalue: attention.KV, mask: attention.Mask) -> Array:
  """`attention.attend` by cuDNN, on GPUs; bfloat16 or float16 only."""
  sharding.require("gpu", "attention_impl=cudnn")
  if query.dtype == jnp.float32:
    raise InputError(
      "attention_impl=cudnn needs dtype bfloat16 or float16, not float32"
    )
  at = jnp.arange(query.shape[1]), jnp.arange(keyvalue.key.shape[2])
  table = dataclasses.replace(mask, is_causal=False).materialize(*at)
  window = None if mask.window is None else (mask.window - 1, 0)

  def local(query, key, value, table):
    key, value = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
    return jax.nn.dot_product_attention(
      *(query, key, value),
      mask=table,
      is_causal=mask.is_causal,
      local_window_size=window,
      implementation="cudnn",
    )

  heads = ("batch", None, "act_heads", None)
  slots = ("batch", "act_heads", None, None)
  run = sharding.local(local, heads, slots, slots, ("batch", None, None, None))
  return run(query, *keyvalue, table)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _online(rows, keyvalue, at, slots, mask, chunk, devices):
  """Attention outputs, as rows, for queries in slots `at`.

  Takes keys in `slots` a chunk at a time, then those of the other `devices`.
  """
  return _online_forward(rows, keyvalue, at, slots, mask, chunk, devices)[0]


def _online_forward(rows, keyvalue, at, slots, mask, chunk, devices):
  zeros = jnp.zeros(rows.shape, jnp.float32)
  sums = _Sums(jnp.full_like(zeros[..., :1], -jnp.inf), zeros[..., :1], zeros)
  there = keyvalue, slots
  for i in range(devices.size):
    there = devices.shift(there) if i else there
    held, places = there
    sums = _fold(sums, rows, held, places, _sight(mask, at), chunk)
  out = (sums.total / sums.norm).astype(rows.dtype)
  log = sums.top + jnp.log(sums.norm)
  return out, (rows, keyvalue, at, slots, mask, out, log)


def _online_gradient(chunk, devices, residuals, grad):
  rows, keyvalue, at, slots, mask, out, log = residuals
  mean = (grad.astype(jnp.float32) * out).sum(-1, keepdims=True)
  see = _sight(mask, at)

  def one(drows, piece):
    (key, value), slots = piece
    probs = jnp.exp(attention.scores(rows, key, see(slots)) - log)
    more, dkey, dvalue = attention.pull_back(rows, key, value, probs, mean, grad)
    return drows + more, attention.KV(dkey, dvalue)

  drows = jnp.zeros(rows.shape, jnp.float32)
  there = keyvalue, slots
  dthere = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), keyvalue)
  for i in range(devices.size):
    if i:
      there, dthere = devices.shift((there, dthere))
    drows, pieces = jax.lax.scan(one, drows, _pieces(*there, chunk))
    dthere = jax.tree.map(lambda d, x: d + _whole(x, d.shape[2]), dthere, pieces)
  dthere = jax.tree.map(lambda d, x: d.astype(x.dtype), devices.shift(dthere), keyvalue)
  return drows.astype(rows.dtype), dthere, None, None, None


_online.defvjp(_online_forward, _online_gradient)


def _fold(sums, rows, keyvalue, slots, see, chunk) -> _Sums:
  """`sums` updated with the keys in these slots."""

  def one(sums, piece):
    (key, value), slots = piece
    scores = attention.scores(rows, key, see(slots))
    top = jnp.maximum(sums.top, scores.max(-1, keepdims=True))
    shrink, probs = jnp.exp(sums.top - top), jnp.exp(scores - top)
    norm = shrink * sums.norm + probs.sum(-1, keepdims=True)
    total = jnp.einsum("bkrs,bksd->bkrd", probs.astype(rows.dtype), value)
    return _Sums(top, norm, shrink * sums.total + total), None

  return jax.lax.scan(one, sums, _pieces(keyvalue, slots, chunk))[0]


def _sight(mask: attention.Mask, at: Array) -> Callable[[Array], Array]:
  """slots [s] -> bool [B, 1, t, s], visible to queries in slots `at`; slot -1 never."""

  def see(slots):
    held = jnp.broadcast_to(slots >= 0, (1, 1, len(at), len(slots)))
    seen = mask.materialize(at, jnp.maximum(slots, 0))
    return held if seen is None else held & seen

  return see


def _pieces(
  keyvalue: attention.KV, slots: Array, chunk: int
) -> tuple[attention.KV, Array]:
  """KV of [n, B, K, chunk, Dh] and slots [n, chunk], padded with slot -1."""
  chunk = min(chunk, len(slots))
  num = -(-len(slots) // chunk)
  extra = (0, num * chunk - len(slots))

  def cut(x):
    x = jnp.pad(x, ((0, 0), (0, 0), extra, (0, 0)))
    return jnp.moveaxis(x.reshape(*x.shape[:2], num, chunk, x.shape[-1]), 2, 0)

  slots = jnp.pad(slots, extra, constant_values=-1).reshape(num, chunk)
  return jax.tree.map(cut, keyvalue), slots


def _whole(pieces: Array, num_slots: int) -> Array:
  """[n, B, K, chunk, Dh] -> [B, K, S, Dh], without the padding."""
  x = jnp.moveaxis(pieces, 0, 2)
  return x.reshape(*x.shape[:2], -1, x.shape[-1])[:, :, :num_slots]


ALL = (chunked, ring, splash, cudnn)
GIVEN = ("query", "keyvalue", "mask", "interpret")  # arguments that no config sets
