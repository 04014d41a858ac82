"""Token embedding, and the ways a model knows the order of its tokens."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from gen_jax.nn import linear
from gen_jax.types import Array


class Embed(nn.Module):
  """A table [V, D]: tokens to vectors, and (tied) vectors to logits."""

  vocab_size: int
  width: int
  init_std: float = 0.02
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    init = nn.with_logical_partitioning(
      linear.normal(self.init_std), ("vocab", "embed")
    )
    self.table = self.param("table", init, (self.vocab_size, self.width))

  def __call__(self, tokens: Array) -> Array:
    """int [B, T] -> [B, T, D]."""
    return self.table.astype(self.dtype)[tokens]

  def attend(self, x: Array) -> Array:
    """[B, T, D] -> logits [B, T, V], the scores of every token against x."""
    return jnp.einsum("btd,vd->btv", x, self.table.astype(self.dtype))


def sinusoids(positions: Array, width: int, max_period: float = 1e4) -> Array:
  """cos and sin of geometrically spaced frequencies; [...] -> float32 [..., width].

  Source: Vaswani et al. 2017 (arXiv:1706.03762) section 3.5, halves concatenated.
  """
  half = width // 2
  frequencies = max_period ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angles = positions[..., None].astype(jnp.float32) * jnp.broadcast_to(
    frequencies, (1,) * positions.ndim + (half,)
  )
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class LearnedPositions(nn.Module):
  """One vector per position, added to the embedding. Radford et al. 2019."""

  max_length: int
  width: int
  init_std: float = 0.02

  @nn.compact
  def __call__(self, positions: Array) -> Array:
    """int [B, T] -> [B, T, D]."""
    init = nn.with_logical_partitioning(
      linear.normal(self.init_std), ("position", "embed")
    )
    return self.param("table", init, (self.max_length, self.width))[positions]


class SinusoidalPositions(nn.Module):
  """Fixed sinusoids added to the embedding; no parameters."""

  max_length: int
  width: int
  max_period: float = 1e4

  def __call__(self, positions: Array) -> Array:
    """int [B, T] -> [B, T, D]."""
    return sinusoids(positions, self.width, self.max_period)


@dataclasses.dataclass(frozen=True)
class Rotary:
  """Rotates query and key pairs by an angle that grows with the position.

  Scores then depend on relative positions alone. Su et al. 2021 (arXiv:2104.09864)
  with halves paired (i, i + Dh/2), as released weights have them.
  """

  base: float = 1e4

  def __call__(self, x: Array, positions: Array) -> Array:
    """x [B, T, N, Dh], positions int [B, T] -> [B, T, N, Dh]."""
    table = sinusoids(positions, x.shape[-1], self.base)[:, :, None, :]
    cos, sin = jnp.split(table, 2, -1)  # [B, T, 1, Dh/2]
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    return rotated.astype(x.dtype)
