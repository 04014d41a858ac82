"""Explicit collectives along a mesh axis, within `jax.shard_map`."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.types import Array, PyTree


class Ring(NamedTuple):
  """The devices of a mesh axis, each with one shard; axis None is one device."""

  axis: str | None
  size: int

  def shift(self, tree: PyTree) -> PyTree:
    """Shifts shards by one: each device receives those of the device before it."""
    if self.size == 1:
      return tree
    pairs = [(i, (i + 1) % self.size) for i in range(self.size)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axis, pairs), tree)

  def gather(self, x: Array, dim: int) -> Array:
    """Gathers all shards of an array that is sharded along `dim`."""
    return x if self.size == 1 else gather(x, dim, self.axis)


# Chips over which a TPU gathers or scatters in one round. Over more chips one round is
# compiled to an all-reduce, whose result each chip mostly discards: twice the traffic.
_ROUND = 8


def _rounds(size: int) -> list[list[list[int]] | None]:
  """Device groups of two rounds of about equal size; [None] is one round over all."""
  first = 1
  while first * first < size:
    first *= 2
  if size <= _ROUND or size % first:
    return [None]
  index = np.arange(size).reshape(first, -1)
  return [index.T.tolist(), index.tolist()]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather(weight: Array, dim: int, axis: str) -> Array:
  """All-gathers a weight sharded along `dim`; its gradient is reduce-scattered."""
  for groups in reversed(_rounds(jax.lax.axis_size(axis))):
    weight = jax.lax.all_gather(
      weight, axis, axis=dim, axis_index_groups=groups, tiled=True
    )
  return weight


def _scatter(dim, axis, residuals, grad):
  """Reduce-scatter along `dim` over an axis's devices.

  Sent as [devices, ...]: along a tiled dimension a TPU would compile an all-reduce.
  """
  del residuals
  num = jax.lax.axis_size(axis)
  first = jnp.moveaxis(grad, dim, 0)
  pieces = first.reshape(num, len(first) // num, -1)
  for groups in _rounds(num):
    pieces = jax.lax.psum_scatter(pieces, axis, axis_index_groups=groups, tiled=True)
  return (jnp.moveaxis(pieces.reshape(-1, *first.shape[1:]), 0, dim),)


gather.defvjp(lambda weight, dim, axis: (gather(weight, dim, axis), None), _scatter)
