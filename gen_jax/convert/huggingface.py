"""Import of released weights into sharded parameters, and their export.

Each shard of a parameter is read from the files directly for its device: besides the
parameters, only one array at a time is in memory.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gen_jax import safetensors, tree
from gen_jax.convert import architectures, names
from gen_jax.models import transformer
from gen_jax.system import files, memory
from gen_jax.types import InputError, Params

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


def _several(wrong: list[str]) -> str:
  return f"{'; '.join(wrong[:6])}{f'; and {len(wrong) - 6} more' * (len(wrong) > 6)}"


def _canonical(
  tensors: Mapping[str, safetensors.Tensor],
  architecture: architectures.Architecture,
  expected: Mapping[str, names.Shape],
) -> dict[str, safetensors.Tensor]:
  """Tensors by their full names, without buffers and the copy of a tied head."""
  found = {}
  for name, tensor in tensors.items():
    if name.endswith(architecture.buffers):
      continue
    full = name if name in expected else f"{architecture.prefix}{name}"
    full = full if full in expected else name
    if full in found:
      raise InputError(
        f"the weights have {full} twice, also as {name}; fetch them again"
      )
    found[full] = tensor
  head, table = "lm_head.weight", architecture.table[0].foreign
  if head in found and head not in expected and table in found:
    if found[head].dtype in safetensors.DTYPES and (
      found[head].shape == found[table].shape
      and found[head].dtype == found[table].dtype
    ):
      if np.array_equal(found[head].view(), found[table].view()):
        del found[head]
  return found


def check(
  expected: Mapping[str, names.Shape],
  found: Mapping[str, safetensors.Tensor],
  what: str,
) -> None:
  """Raises InputError that lists missing, extra, mis-shaped or mistyped tensors."""
  wrong = []
  for name, shape in expected.items():
    if name not in found:
      wrong.append(f"{name} is missing")
    elif (have := found[name]).shape != shape:
      wrong.append(f"{name} is {list(have.shape)}, config.json wants {list(shape)}")
    elif have.dtype not in safetensors.DTYPES:
      known = ", ".join(safetensors.DTYPES)
      wrong.append(f"{name} is {have.dtype:.20}, one of {known} is needed")
  wrong += [f"{n} {list(found[n].shape)} is extra" for n in found if n not in expected]
  if wrong:
    raise InputError(f"config.json and {what} do not fit: {_several(wrong)}")


def check_depth(num: int, tensors: Mapping[str, Any], what: str) -> None:
  """Raises InputError for more layers than tensors, before a model is built."""
  if num > len(tensors):
    raise InputError(
      f"{what} do not fit the weights: {num} are wanted, and there are only"
      f" {len(tensors)} tensors"
    )


def match(
  tensors: Mapping[str, safetensors.Tensor],
  architecture: architectures.Architecture,
  abstract: Params,
  biasless: tuple[str, ...] = (),
) -> dict[str, tuple[names.TensorMap, safetensors.Tensor]]:
  """{path: its entry and tensor} of each parameter (of unrolled layers).

  Args:
    tensors: of the files.
    abstract: parameters of the model of config.json.
    biasless: parts of layers whose biases are missing and become zero.

  Raises:
    InputError: lists what is missing, extra, mis-shaped or of an unknown dtype.
  """
  shapes = unrolled_shapes(abstract)
  num_layers = len({p.split("/")[0] for p in shapes if p.startswith("block_")})
  entries = list(names.tensor_maps(architecture.table, shapes, num_layers))
  absent = tuple(f".{part}." for part in biasless)
  expected = {
    entry.foreign: shape
    for entry, shape in entries
    if not (entry.foreign.endswith(".bias") and any(a in entry.foreign for a in absent))
  }
  found = _canonical(tensors, architecture, expected)
  check(expected, found, "the weights")
  where = {path: entry for entry, _ in entries for path in entry.paths}
  return {
    p: (entry, found[entry.foreign])
    for p, entry in where.items()
    if entry.foreign in found
  }


def _read(
  places: Mapping[str, tuple[names.TensorMap, safetensors.Tensor]],
  path: str,
  shape: names.Shape,
  index: tuple[slice, ...],
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


def load(
  places: Mapping[str, tuple[names.TensorMap, safetensors.Tensor]], abstract: Params
) -> Params:
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

  return tree.map_with_path(one, abstract)


def _layer(params: Mapping[str, Any], path: str, shape: names.Shape) -> np.ndarray:
  """One parameter of unrolled layers on the host; zero if the model has none."""
  head, _, own = path.partition("/")
  if path in params:
    return np.asarray(params[path])
  if head.startswith("block_") and f"{_BLOCKS}{own}" in params:
    return np.asarray(params[f"{_BLOCKS}{own}"][int(head.removeprefix("block_"))])
  return np.zeros(shape, np.float32)


def foreign_tensors(
  architecture: architectures.Architecture, config: transformer.Config, params: Params
) -> dict[str, safetensors.LazyTensor]:
  """The foreign tensors of a model; biases that only the format has are zero.

  Raises:
    ValueError: a parameter without a tensor.
  """
  flat = tree.flatten(params)
  shapes = unrolled_shapes(params)
  filled = {**shapes, **_biases(architecture, config, shapes)}
  planned, done = {}, set()
  for entry, shape in names.tensor_maps(architecture.table, filled, config.num_layers):

    def make(entry=entry):
      return entry.whole([_layer(flat, path, filled[path]) for path in entry.paths])

    planned[entry.foreign] = safetensors.LazyTensor(shape, make)
    done.update(entry.paths)
  if left := sorted(shapes.keys() - done):
    raise ValueError(f"no foreign tensor holds {left}")
  return planned


def _biases(
  architecture: architectures.Architecture,
  config: transformer.Config,
  shapes: Mapping[str, names.Shape],
) -> dict[str, names.Shape]:
  """Shapes of GPT-2's biases that this model may lack; LLaMA's are optional."""
  if architecture.model_type != "gpt2":
    return {}
  biases = {}
  for path, shape in shapes.items():
    stem, _, last = path.rpartition("/")
    if last == "scale":
      biases[f"{stem}/bias"] = shape
    elif last == "kernel" and stem != "head":
      is_split = stem.endswith(("query", "key", "value"))
      biases[f"{stem}/bias"] = shape[1:] if is_split else shape[-1:]
  return biases


def absent_biases(config: Mapping[str, Any]) -> tuple[str, ...]:
  """Parts of LLaMA's layers without biases, by config.json."""
  return tuple(
    part
    for part, key in (("self_attn", "attention_bias"), ("mlp", "mlp_bias"))
    if not config.get(key)
  )


def open_model(
  folder: pathlib.Path,
) -> tuple[
  architectures.Architecture, dict[str, Any], dict[str, safetensors.Tensor], tuple
]:
  """Reads config.json and the headers of the weights in a folder.

  Returns:
    The family, the model block, the tensors, and the parts of layers without biases.

  Raises:
    InputError: anything unknown or damaged.
  """
  config = files.read_json(folder / "config.json")
  architecture, block = architectures.read(config)
  tensors = safetensors.open_folder(folder)
  check_depth(block["num_layers"], tensors, "config.json's layers")
  parts = absent_biases(config) if architecture.model_type == "llama" else ()
  return architecture, block, tensors, parts
