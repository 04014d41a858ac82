"""Adapters between our layout and that of LoRA files, without merging them.

    ours     W + scale a b      a [*in, r], b [r, *out], of each kernel
    theirs   W + scale up down  down [r, in, ...], up [out, r, ...], of each module

One module of theirs may hold several of our kernels (GPT-2's c_attn). Read, they share
down, and up is cut. Written, their downs are stacked and up is block-diagonal, so that
the product is the same; kernels whose a are equal share them again.

Ours have one rank and one scale: read, smaller ranks are filled up with zeros, and
other scales multiply b.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gen_jax import safetensors, tree
from gen_jax.convert import lora_files, matching, names
from gen_jax.types import InputError, Params

_BLOCK = re.compile(r"^block_\d+/")
Matrices = Mapping[str, tuple[np.ndarray, np.ndarray]]  # (a, b) by unrolled path


class Module(NamedTuple):
  """The change of one module of theirs.

  Attributes:
    down, up: float32 [r, in, ...] and [out, r, ...].
    parts: how many pairs of ours, each of our rank, it holds side by side.
  """

  down: np.ndarray
  up: np.ndarray
  parts: int


def home(network: str) -> str:
  """Start of the paths of a network's parameters."""
  own = {lora_files.LANGUAGE: "", lora_files.TRANSFORMER: "dit/"}
  return own.get(network, f"{network}/")


def read(
  pairs: lora_files.Pairs, plans: Mapping[str, matching.Plan], abstract: Params
) -> tuple[dict[str, Any], Matrices]:
  """The adapter block of a config, and the matrices of its kernels.

  Args:
    pairs: of `lora_files.read`.
    plans: that they were read by.
    abstract: parameters of the model that is adapted.

  Raises:
    InputError: there are none, or values that are not finite.
  """
  found = [(n, name, pair) for n, own in pairs.items() for name, pair in own.items()]
  if not found:
    raise InputError("the LoRA file holds no adapter")
  rank = max(pair.down.shape[0] for *_, pair in found)
  scale = max(abs(pair.scale) for *_, pair in found)
  matrices, shapes = {}, matching.unrolled_shapes(abstract)
  for network, name, pair in found:
    entry = plans[network][name][0]
    for path in entry.paths:
      own = f"{home(network)}{path}"
      a, b = _ours(entry, path, pair, shapes[own])
      b = b * np.float32(pair.scale / scale if scale else 1.0)
      room = rank - pair.down.shape[0]
      matrices[own] = (
        np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, room)]),
        np.pad(b, [(0, room)] + [(0, 0)] * (b.ndim - 1)),
      )
  everything = tree.flatten(abstract)
  chosen = {p if p in everything else _BLOCK.sub("blocks/", p) for p in matrices}
  ends = endings(chosen, everything, "/", 2)
  pattern = f"(^|/)({'|'.join(map(re.escape, ends))})$"
  block = {"name": "lora", "rank": rank, "alpha": scale * rank, "pattern": pattern}
  return block, matrices


def endings(
  chosen: Collection[str], everything: Collection[str], separator: str, least: int = 1
) -> list[str]:
  """The shortest ends of names that find exactly the chosen ones.

  >>> endings({"h.0.q", "h.1.q"}, ["h.0.q", "h.0.k", "h.1.q"], ".")
  ['q']
  >>> endings({"h.0.q"}, ["h.0.q", "h.0.k", "h.1.q"], ".")
  ['0.q']

  Args:
    least: parts of a name.
  """

  def end(name, num):
    return separator.join(name.split(separator)[-num:])

  depth = max(name.count(separator) + 1 for name in chosen)
  for num in range(least, depth):
    ends = {end(name, num) for name in chosen}
    if all(name in chosen for name in everything if end(name, num) in ends):
      return sorted(ends)
  return sorted(chosen)


def _ours(
  entry: names.TensorMap, path: str, pair: lora_files.Pair, shape: names.Shape
) -> tuple[np.ndarray, np.ndarray]:
  """a [*in, r] and b [r, *out] of one of a module's kernels."""
  rank, cut = pair.down.shape[0], entry.inputs or len(shape) - 1
  down, up = (_values(half) for half in (pair.down, pair.up))
  kernel = dataclasses.replace(entry, paths=(path,), transposed=True)
  down = down.reshape(kernel.shape([(*shape[:cut], rank)]))
  a = kernel.part(down, path, (*shape[:cut], rank))
  return a, _up(entry.paths).part(up.reshape(-1, rank), path, (rank, *shape[cut:]))


def _values(tensor: safetensors.Tensor) -> np.ndarray:
  values = np.asarray(tensor.view(), np.float32)
  if not np.isfinite(values).all():
    raise InputError(f"{tensor.file} is corrupted: values that are not finite")
  return values


def _up(paths: Sequence[str]) -> names.TensorMap:
  """b [r, *out] of several kernels as up [out, r]."""
  return names.TensorMap("", tuple(paths), 1, transposed=True)


def place(matrices: Matrices, abstract: Params) -> Params:
  """The parameters of an adapted run; layers without an adapter are zero.

  Args:
    abstract: of the run, with shardings; layers unrolled or stacked.
  """

  def one(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    kernel, _, half = path.rpartition("/")
    at = ("a", "b").index(half)
    if kernel in matrices:
      whole = matrices[kernel][at]
    else:
      whole = np.zeros(leaf.shape, np.float32)
      for i in range(leaf.shape[0]):
        if (own := _layer(kernel, i)) in matrices:
          whole[i] = matrices[own][at]
    whole = np.ascontiguousarray(whole, np.float32)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda i: whole[i])

  return tree.map_with_path(one, abstract)


def _layer(path: str, layer: int) -> str:
  return path.replace("blocks/", f"block_{layer}/", 1)


def unrolled(params: Params) -> Matrices:
  """(a, b) of each adapted kernel, layers unrolled."""
  flat, found = tree.flatten(params), {}
  for kernel in dict.fromkeys(path.rpartition("/")[0] for path in flat):
    a, b = (np.asarray(flat[f"{kernel}/{half}"], np.float32) for half in "ab")
    if kernel.startswith("blocks/"):
      found |= {_layer(kernel, i): (a[i], b[i]) for i in range(len(a))}
    else:
      found[kernel] = (a, b)
  return found


def write(
  params: Params, plans: Mapping[str, matching.Plan], what: str
) -> dict[str, dict[str, Module]]:
  """The changes of each network's modules, by their names in its format.

  Args:
    params: adapters.
    what: holds modules of the format, for messages.

  Raises:
    InputError: parameters that are no kernel of the format.
  """
  matrices = unrolled(params)
  written, left = {network: {} for network in plans}, set(matrices)
  for network, plan in plans.items():
    for name, (entry, _) in plan.items():
      own = [matrices.get(f"{home(network)}{path}") for path in entry.paths]
      if not any(own) or not entry.paths[0].endswith("/kernel"):
        continue
      written[network][name.removesuffix(".weight")] = _theirs(entry, own)
      left -= {f"{home(network)}{path}" for path in entry.paths}
  if left:
    raise InputError(
      f"the adapter cannot be exported: a LoRA file of {what} has no place for"
      f" {', '.join(sorted(left)[:4])}; adapt kernels of its modules alone"
    )
  return written


def _theirs(entry: names.TensorMap, own: Sequence[tuple | None]) -> Module:
  """The change of a module, from those of its kernels; None: a kernel without."""
  downs: list[np.ndarray] = []
  for a, _ in filter(None, own):
    if not any(np.array_equal(a, down) for down in downs):
      downs.append(a)
  rank = downs[0].shape[-1]
  width = next(b for _, b in filter(None, own)).reshape(rank, -1).shape[1]
  up = np.zeros((len(own) * width, len(downs) * rank), np.float32)
  for i, pair in enumerate(own):
    if pair is not None:
      j = next(j for j, down in enumerate(downs) if np.array_equal(pair[0], down))
      own_up = _up(("",)).whole([pair[1]])
      up[i * width : (i + 1) * width, j * rank : (j + 1) * rank] = own_up
  down = dataclasses.replace(entry, transposed=True).whole(downs)
  return Module(down, up.reshape(*up.shape, *(1,) * (down.ndim - 2)), len(downs))
