"""Computations that XLA's CPU backend runs faster in pieces.

`jax.lax.platform_dependent` selects them; programs of other platforms do not hold them.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen_jax.types import Array

_SCORES = 2**22  # attention scores that fit a CPU's cache


def row_times_kernel(x: Array, kernel: Array, depth: int, most: int = 8) -> Array:
  """`linear.product` of a single row, summed in pieces that run in parallel.

  It is bound by reading the kernel, which XLA's CPU backend does on one core.
  """
  num = math.gcd(x.size, most)
  pieces = kernel.reshape(num, x.size // num, -1)
  y = jnp.einsum(
    "pd,pdf->pf", x.reshape(num, -1), pieces, preferred_element_type=jnp.float32
  )
  shape = (*x.shape[: x.ndim - depth], *kernel.shape[depth:])
  return y.sum(0).astype(x.dtype).reshape(shape)


def piece(num_rows: int, num_slots: int) -> int | None:
  """Queries per step of `attend`; None if all at once is as fast."""
  found = math.gcd(num_rows, 2 ** int(math.log2(max(_SCORES / num_slots, 1))))
  is_short = num_rows * num_slots < _SCORES // 4
  return None if is_short or found < min(num_rows, 128) else found


def attend(
  rows, key, value, seen, *, piece: int, scores: Callable[..., Array]
) -> Array:
  """softmax(q k^T) v, one head and `piece` queries at a time: scores fit the cache.

  All scores of a large image are a gigabyte, written and read in each step of softmax.

  Args:
    rows: [B, K, R, Dh], scaled.
    key, value: [B, K, S, Dh].
    seen: bool [B, 1, t, S], or None.
    piece: queries per step; see `piece`.
    scores: see `attention.scores`.

  Returns:
    [B, K, R, Dh].
  """
  if seen is not None:  # of every row, [B, R, S]
    seen = jnp.tile(seen[:, 0], (1, rows.shape[2] // seen.shape[2], 1))
    seen = jnp.broadcast_to(seen, (len(rows), *seen.shape[1:]))

  def head(inputs, seen):  # [R, Dh], [S, Dh] twice, [R, S]
    rows, key, value = inputs

    def some(inputs):
      rows, seen = jax.tree.map(lambda x: x[None, None], inputs)
      found = scores(rows, key[None, None], seen)[0, 0]
      likely = jnp.exp(found - found.max(-1, keepdims=True))
      return (likely.astype(value.dtype) @ value) / likely.sum(-1, keepdims=True)

    pieces = jax.tree.map(lambda x: x.reshape(-1, piece, x.shape[-1]), (rows, seen))
    out = jax.lax.map(some, pieces)
    return out.reshape(rows.shape).astype(rows.dtype)

  def example(inputs):
    *inputs, seen = inputs
    return jax.lax.map(lambda one: head(one, seen), tuple(inputs))

  return jax.lax.map(example, (rows, key, value, seen))
