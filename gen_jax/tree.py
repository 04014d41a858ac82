"""Pytrees addressed by path: 'decoder/block_0/attention/query/kernel'."""

import hashlib
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gen_jax.types import Array, PyTree


def path_str(path: tuple[Any, ...]) -> str:
  """Joins a jax key path with slashes.

  >>> [path_str(p) for p, _ in jax.tree_util.tree_leaves_with_path({'a': [1, 2]})]
  ['a/0', 'a/1']
  """
  names = []
  for entry in path:
    for attribute in ("key", "idx", "name"):
      if hasattr(entry, attribute):
        names.append(str(getattr(entry, attribute)))
        break
  return "/".join(names)


def flatten(tree: PyTree) -> dict[str, Any]:
  """Returns {path: leaf} in the tree's own order.

  >>> flatten({'a': {'b': 1}, 'c': 2})
  {'a/b': 1, 'c': 2}
  """
  return {path_str(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def map_with_path(fn: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
  """Applies fn(path, leaf) to every leaf.

  >>> map_with_path(lambda p, x: f'{p}={x}', {'a': {'b': 1}})
  {'a': {'b': 'a/b=1'}}
  """
  return jax.tree_util.tree_map_with_path(lambda p, x: fn(path_str(p), x), tree)


def mask(pattern: str, tree: PyTree) -> PyTree:
  """Returns a tree of bools: True where `pattern` (regex) occurs in the path.

  >>> mask('kernel$', {'kernel': 1, 'bias': 2})
  {'bias': False, 'kernel': True}
  """
  return map_with_path(lambda p, _: re.search(pattern, p) is not None, tree)


def size(tree: PyTree) -> int:
  """Number of elements in all leaves (arrays or abstract arrays).

  >>> size({'a': np.zeros((2, 3)), 'b': np.zeros(4)})
  10
  """
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def num_bytes(tree: PyTree) -> int:
  """Number of bytes in all leaves (arrays or abstract arrays; PRNG keys as their data).

  >>> num_bytes({'a': np.zeros((2, 3), np.float32)})
  24
  """
  return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def fetch(x: Array | np.ndarray) -> np.ndarray:
  """The whole array on every process, however it is sharded."""
  if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
    return np.asarray(x)
  return multihost_utils.process_allgather(x, tiled=True)


def sha256(tree: PyTree) -> str:
  """Hash of paths, dtypes, shapes and bytes of every leaf: equal iff bitwise equal.

  >>> sha256({'a': np.zeros(2)}) == sha256({'a': np.zeros(2, np.float32)})
  False
  """
  digest = hashlib.sha256()
  for path, leaf in flatten(tree).items():
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    leaf = fetch(leaf)
    digest.update(f"{path} {leaf.dtype} {leaf.shape};".encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()
