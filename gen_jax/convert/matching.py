"""Foreign tensors matched with parameters: one plan, one check, one reader, one writer.

A `Plan` lists every foreign tensor of a model, with its map and its shape. Every format
makes one; import reads the files by it, export writes them by it. Layers are unrolled
in the plan, as they are in files; ours may be stacked, as `blocks/`.

Each shard of a parameter is read from the files directly for its device: besides the
parameters, only one array at a time is in memory.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from gen_jax import safetensors, tree
from gen_jax.convert import names
from gen_jax.system import memory, progress
from gen_jax.types import InputError, Params

Plan = Mapping[str, tuple[names.TensorMap, names.Shape]]  # by foreign name
Places = dict[str, tuple[names.TensorMap, safetensors.Tensor]]  # by our path
_BLOCKS = "blocks/"


def unrolled_shapes(abstract: Params) -> dict[str, names.Shape]:
  """{path: shape} of the same model with unrolled layers."""
  shapes = {}
  for path, leaf in tree.flatten(abstract).items():
    if path.startswith(_BLOCKS):
      for i in range(leaf.shape[0]):
        shapes[f"block_{i}/{path.removeprefix(_BLOCKS)}"] = tuple(leaf.shape[1:])
    else:
      shapes[path] = tuple(leaf.shape)
  return shapes


def plan(entries: Iterable[names.TensorMap], shapes: Mapping[str, names.Shape]) -> Plan:
  """The entries that apply to a model, with the shapes of their tensors.

  Args:
    entries: of a format; those of parameters that the model lacks are left out.
    shapes: {path: shape} of a model with unrolled layers.

  Raises:
    ValueError: a parameter without a tensor.
  """
  found = {
    entry.foreign: (entry, entry.shape([shapes[path] for path in entry.paths]))
    for entry in entries
    if all(path in shapes for path in entry.paths)
  }
  held = {path for entry, _ in found.values() for path in entry.paths}
  if left := sorted(shapes.keys() - held):
    raise ValueError(f"no foreign tensor holds {left}")
  return found


def check_depth(num: int, tensors: Mapping[str, Any], what: str) -> None:
  """Raises InputError for more layers than tensors, before a model is built."""
  if num > len(tensors):
    raise InputError(
      f"{what} do not fit the weights: {num} are wanted, and there are only"
      f" {len(tensors)} tensors"
    )


def match(plan: Plan, tensors: Mapping[str, safetensors.Tensor], what: str) -> Places:
  """{path: its map and tensor} of each parameter (of unrolled layers).

  Args:
    tensors: of the files, by their names in the plan.
    what: they are, for the message.

  Raises:
    InputError: lists what is missing, extra, mis-shaped or of an unknown dtype.
  """
  wrong, known = [], ", ".join(safetensors.DTYPES)
  for name, (_, shape) in plan.items():
    if (found := tensors.get(name)) is None:
      wrong.append(f"{name} is missing")
    elif found.shape != shape:
      wrong.append(f"{name} is {list(found.shape)}, config.json wants {list(shape)}")
    elif found.dtype not in safetensors.DTYPES:
      wrong.append(f"{name} is {found.dtype:.20}, one of {known} is needed")
  extra = tensors.keys() - plan.keys()
  wrong += [f"{n} {list(t.shape)} is extra" for n, t in tensors.items() if n in extra]
  if wrong:
    more = f"; and {len(wrong) - 6} more" if len(wrong) > 6 else ""
    raise InputError(f"config.json and {what} do not fit: {'; '.join(wrong[:6])}{more}")
  return {
    path: (entry, tensors[name])
    for name, (entry, _) in plan.items()
    for path in entry.paths
  }


def _read(
  places: Places, path: str, shape: names.Shape, index: tuple[slice, ...]
) -> np.ndarray:
  """The slice `index` of one parameter (of unrolled layers), float32."""
  if path not in places:
    return np.zeros(shape, np.float32)[index]
  entry, tensor = places[path]
  part = entry.part(tensor.view(), path, shape)[index]
  values = np.array(part, np.float32, order="C")
  if not np.isfinite(values).all():
    raise InputError(
      f"{tensor.file} is corrupted: {entry.foreign} has values that are not finite;"
      " fetch it again"
    )
  return values


def load(places: Places, abstract: Params) -> Params:
  """Reads parameters, float32, in the layout of `abstract`.

  Args:
    places: of `match`; a parameter without one is zero.
    abstract: shapes and shardings; layers unrolled or stacked.

  Raises:
    InputError: values that are not finite, or more than this machine can hold.
  """
  memory.check("the weights", abstract)

  def one(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    def read(index):
      if not path.startswith(_BLOCKS):
        return _read(places, path, leaf.shape, index)
      layers = range(leaf.shape[0])[index[0]]
      inner, own = leaf.shape[1:], path.removeprefix(_BLOCKS)
      bounds = [s.indices(n)[:2] for s, n in zip(index[1:], inner, strict=True)]
      stacked = np.empty((len(layers), *(b - a for a, b in bounds)), np.float32)
      for k, i in enumerate(layers):
        stacked[k] = _read(places, f"block_{i}/{own}", inner, index[1:])
      return stacked

    array = jax.make_array_from_callback(leaf.shape, leaf.sharding, read)
    return array.block_until_ready()

  flat = tree.flatten(abstract)
  watched = progress.track(flat.items(), len(flat), "arrays read")
  read = {path: one(path, leaf) for path, leaf in watched}
  return tree.map_with_path(lambda path, leaf: read[path], abstract)


def foreign_tensors(plan: Plan, params: Params) -> dict[str, safetensors.LazyTensor]:
  """The foreign tensors of a plan, made when they are written."""
  flat, found = tree.flatten(params), {}

  def unrolled(path):
    if path in flat:
      return np.asarray(flat[path])
    block, _, own = path.partition("/")
    return np.asarray(flat[f"{_BLOCKS}{own}"][int(block.removeprefix("block_"))])

  for name, (entry, shape) in plan.items():

    def make(entry=entry):
      return entry.whole([unrolled(path) for path in entry.paths])

    found[name] = safetensors.LazyTensor(shape, make)
  return found
