"""Exchanges by hand between devices along a mesh axis, within `jax.shard_map`."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.types import Array, PyTree


class Ring(NamedTuple):
  """The pieces that an axis is cut into, each on a device."""

  axis: str | None
  size: int

  def turn(self, tree: PyTree) -> PyTree:
    """What the device before has."""
    if self.size == 1:
      return tree
    pairs = [(i, (i + 1) % self.size) for i in range(self.size)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axis, pairs), tree)

  def gather(self, x: Array, dim: int) -> Array:
    """All pieces of what is cut along `dim`."""
    return x if self.size == 1 else gather(x, dim, self.axis)


# Chips among which a TPU gathers or scatters in one round. Over all chips of a larger
# slice one round is compiled to a sum everywhere, of which each chip throws most away:
# twice the traffic.
_ROUND = 8


def _rounds(size: int) -> list[list[list[int]] | None]:
  """Groups of devices in two rounds, about as many in each; None is all in one."""
  first = 1
  while first * first < size:
    first *= 2
  if size <= _ROUND or size % first:
    return [None]
  index = np.arange(size).reshape(first, -1)
  return [index.T.tolist(), index.tolist()]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather(weight: Array, dim: int, axis: str) -> Array:
  """The whole of a weight that is cut along `dim`; its gradient is scattered again."""
  for groups in reversed(_rounds(jax.lax.axis_size(axis))):
    weight = jax.lax.all_gather(
      weight, axis, axis=dim, axis_index_groups=groups, tiled=True
    )
  return weight


def _scatter(dim, axis, residuals, grad):
  """The sum over an axis's devices, of which each keeps its piece along `dim`.

  It travels as [devices, ...]: what is cut along a side of its tiles a TPU sums
  everywhere, too.
  """
  del residuals
  num = jax.lax.axis_size(axis)
  first = jnp.moveaxis(grad, dim, 0)
  pieces = first.reshape(num, len(first) // num, -1)
  for groups in _rounds(num):
    pieces = jax.lax.psum_scatter(pieces, axis, axis_index_groups=groups, tiled=True)
  return (jnp.moveaxis(pieces.reshape(-1, *first.shape[1:]), 0, dim),)


gather.defvjp(lambda weight, dim, axis: (gather(weight, dim, axis), None), _scatter)
