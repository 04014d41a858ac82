"""Token embeddings, position embeddings and the language-model head."""

import dataclasses
import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import ranges, sharding
from gen_jax.nn import linear
from gen_jax.types import Array, InputError, PyTree

# (logits float32 [B, T, V], arrays [B, T]) -> a tree of arrays [B, T, ...].
LogitsFn = Callable[..., PyTree]
_TABLE = ("vocab", "embed")


class Embed(nn.Module):
  """A table [V, D]: tokens to vectors and, if tied, vectors to logits."""

  vocab_size: int
  width: int
  init_std: ranges.Deviation = 0.02
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    init = linear.named(linear.normal(self.init_std), _TABLE)
    self.table = self.param("table", init, (self.vocab_size, self.width))

  def __call__(self, tokens: Array) -> Array:
    """int [B, T] -> [B, T, D]."""
    look_up = sharding.gathering(lambda table, at: table[at], _TABLE, has_length=True)
    return look_up(self.table.astype(self.dtype), tokens)

  def score(
    self,
    x: Array,
    *logits_fn_args: Array,
    logits_fn: LogitsFn,
    chunk: int | None = None,
  ):
    """`Head` with the transposed table as its kernel."""
    table = self.table.astype(self.dtype)
    multiply = functools.partial(jnp.einsum, "btd,vd->btv")
    return _score(multiply, table, _TABLE, x, logits_fn_args, logits_fn, chunk)


class Head(nn.Module):
  """The language-model head: logits, and `logits_fn` of them."""

  vocab_size: int
  init_std: ranges.Deviation = 0.02
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Array,
    *logits_fn_args: Array,
    logits_fn: LogitsFn,
    chunk: int | None = None,
  ):
    """x [B, T, D] -> logits_fn(logits float32 [B, T, V], *logits_fn_args).

    Args:
      logits_fn_args: arrays [B, T].
      chunk: tokens of each sequence whose logits exist at once, in both passes;
        None: all.
    """
    names = ("embed", "vocab")
    init = linear.named(linear.normal(self.init_std), names)
    kernel = self.param("kernel", init, (x.shape[-1], self.vocab_size))
    kernel = kernel.astype(self.dtype)
    return _score(linear.product, kernel, names, x, logits_fn_args, logits_fn, chunk)


def _score(multiply, weight, names, x, logits_fn_args, logits_fn, chunk):
  length = x.shape[1]
  if chunk is not None and length % chunk:
    raise InputError(f"head_chunk={chunk} must divide the length, {length}")
  parts = 1 if chunk is None else length // chunk

  def part(weight, x, *logits_fn_args):
    logits = multiply(x, weight)
    logits = sharding.constrain(logits, "batch", "length", "act_vocab")
    # float32 for softmax and loss: bf16 has 8 bits for a sum over V terms.
    return logits_fn(logits.astype(jnp.float32), *logits_fn_args)

  def whole(weight, *inputs):  # the weight is gathered once for all parts
    own = inputs[0].shape[1]  # this shard's length if the mesh axis context is used
    num = math.gcd(parts, own)
    if num == 1:
      return part(weight, *inputs)

    def cut(x):
      return jnp.swapaxes(x.reshape(len(x), num, own // num, *x.shape[2:]), 0, 1)

    def join(y):
      return jnp.swapaxes(y, 0, 1).reshape(-1, own, *y.shape[3:])

    one = jax.checkpoint(lambda inputs: part(weight, *inputs))
    out = jax.lax.map(one, jax.tree.map(cut, inputs))
    return jax.tree.map(join, out)

  return sharding.gathering(whole, names, has_length=True)(weight, x, *logits_fn_args)


def frequencies(width: int, max_period: float = 1e4) -> Array:
  """float32 [width / 2], geometrically spaced from 1 to 1 / max_period (exclusive)."""
  half = width // 2
  return max_period ** (-jnp.arange(half, dtype=jnp.float32) / half)


def sinusoids(positions: Array, frequencies: Array) -> Array:
  """cos and sin of position times frequency; [...] x [F] -> float32 [..., 2 F].

  Source: Vaswani et al. 2017 (arXiv:1706.03762) section 3.5, halves concatenated.
  """
  angles = positions[..., None].astype(jnp.float32) * jnp.broadcast_to(
    frequencies, (1,) * positions.ndim + frequencies.shape
  )
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class LearnedPositions(nn.Module):
  """One vector per position, added to the embedding. Radford et al. 2019."""

  max_length: int
  width: int
  init_std: ranges.Deviation = 0.02

  @nn.compact
  def __call__(self, positions: Array) -> Array:
    """int [B, T] -> [B, T, D]."""
    names = ("position", "embed")
    init = linear.named(linear.normal(self.init_std), names)
    table = self.param("table", init, (self.max_length, self.width))
    look_up = sharding.gathering(lambda table, at: table[at], names, has_length=True)
    return look_up(table, positions)


Position = Callable[..., nn.Module] | None  # constructor of additive positions


def are_learned(position: Position) -> bool:
  """Whether this constructor makes `LearnedPositions`."""
  return position is not None and isinstance(
    position(max_length=1, width=1), LearnedPositions
  )


def placed(x: Array, at: Array, position: Position, max_length: int) -> Array:
  """x [B, T, D] plus the position embedding, if any, at positions int [B, T]."""
  if position is None:
    return x
  add = position(max_length=max_length, width=x.shape[-1], name="position")
  return x + add(at).astype(x.dtype)


class SinusoidalPositions(nn.Module):
  """Fixed sinusoids, added to the embedding."""

  max_length: int
  width: int
  max_period: ranges.PositiveConstant = 1e4

  def __call__(self, positions: Array) -> Array:
    """int [B, T] -> [B, T, D]."""
    return sinusoids(positions, frequencies(self.width, self.max_period))


def check_pairs(
  owner: str, width: int, head_dim: int, position: Position, rotary: Callable | None
) -> None:
  """Raises InputError if cosines and sines would have an odd number of channels."""
  if rotary is not None and head_dim % 2:
    raise InputError(
      f"{owner} rotary turns pairs of channels: the head size, {head_dim}, must be even"
    )
  if (
    width % 2
    and position
    and isinstance(position(max_length=1, width=1), SinusoidalPositions)
  ):
    raise InputError(f"{owner} width={width} must be even with position=sinusoidal")


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
  """Context extension: divides low frequencies by `factor`, keeps high ones.

  In between it interpolates by the number of turns within `original_length`.
  Source: Grattafiori et al. 2024 (arXiv:2407.21783) section 3.4, as released.
  """

  factor: ranges.PositiveConstant = 8.0
  low_freq_factor: ranges.PositiveConstant = 1.0
  high_freq_factor: ranges.PositiveConstant = 4.0
  original_length: ranges.Count = 8192

  def __post_init__(self):
    ranges.check(self)
    if self.high_freq_factor <= self.low_freq_factor:
      raise InputError(
        f"scaling high_freq_factor={self.high_freq_factor} must be above"
        f" low_freq_factor={self.low_freq_factor}"
      )

  def __call__(self, frequencies: Array) -> Array:
    """float32 [F] radians per position -> float32 [F]."""
    turns = self.original_length * frequencies / (2.0 * jnp.pi)
    low, high = self.low_freq_factor, self.high_freq_factor
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / self.factor)


@dataclasses.dataclass(frozen=True)
class LinearScaling:
  """Divides all positions by `factor`. Chen et al. 2023 (arXiv:2306.15595)."""

  factor: ranges.PositiveConstant

  def __post_init__(self) -> None:
    ranges.check(self)

  def __call__(self, frequencies: Array) -> Array:
    """float32 [F] -> float32 [F]."""
    return frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class Rotary:
  """Rotates query and key pairs by an angle that grows with the position.

  Scores then depend on relative positions only. Su et al. 2021 (arXiv:2104.09864)
  with channels paired (i, i + Dh/2), as in released weights.
  """

  base: ranges.PositiveConstant = 1e4
  scaling: Callable[[Array], Array] | None = None

  def __post_init__(self) -> None:
    ranges.check(self)

  def __call__(self, x: Array, positions: Array) -> Array:
    """x [B, T, N, Dh], positions int [B, T] -> [B, T, N, Dh]; Dh is even."""
    if x.shape[-1] % 2:
      raise InputError(f"rotary needs heads of an even size, not {x.shape[-1]}")
    rates = frequencies(x.shape[-1], self.base)
    rates = rates if self.scaling is None else self.scaling(rates)
    table = sinusoids(positions, rates)[:, :, None, :]
    cos, sin = jnp.split(table, 2, -1)  # [B, T, 1, Dh/2]
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    return rotated.astype(x.dtype)
