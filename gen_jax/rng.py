"""Random keys derived from names and example indices, never from call order."""

import functools
import zlib

import jax
import jax.numpy as jnp

from gen_jax.types import Array


def named(key: Array, name: str) -> Array:
  """Returns the key derived from `key` and `name` (stable across runs)."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def per_example(key: Array, batch_size: int, offset: int | Array = 0) -> Array:
  """Returns keys [B]; entry i depends on `key` and `offset + i` only."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, offset + jnp.arange(batch_size))


def sample_keys(seed: int, num: int, offset: int = 0) -> Array:
  """Returns keys [num] of samples offset, offset + 1, ... of a seed."""
  return _sample_keys(jax.random.key(seed), num, offset)


@functools.partial(jax.jit, static_argnums=1)
def _sample_keys(key: Array, num: int, offset: int) -> Array:
  return per_example(named(key, "sample"), num, offset)


def fold_in(keys: Array, data: int | Array) -> Array:
  """Folds one number into each of keys [B]."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def split(keys: Array, num: int) -> list[Array]:
  """Splits each of keys [B] in `num`; returns `num` arrays of keys [B]."""
  children = jax.vmap(lambda k: jax.random.split(k, num))(keys)  # [B, num]
  return [children[:, i] for i in range(num)]


def normal(keys: Array, shape: tuple[int, ...]) -> Array:
  """Standard normal float32 [B, *shape]; entry i depends on keys[i] only."""
  return jax.vmap(lambda k: jax.random.normal(k, shape))(keys)


def uniform(keys: Array) -> Array:
  """Uniform float32 [B] in [0, 1); entry i depends on keys[i] only."""
  return jax.vmap(jax.random.uniform)(keys)
