"""Folders of language models as transformers has them, and their tensors."""

import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from gen_jax import safetensors, tree
from gen_jax.convert import architectures, language, matching, names
from gen_jax.system import files
from gen_jax.types import InputError, Params


def _canonical(
  tensors: Mapping[str, safetensors.Tensor],
  architecture: language.Architecture,
  expected: Collection[str],
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


def _entries(architecture, shapes) -> Iterator[names.TensorMap]:
  layers = {path.split("/")[0] for path in shapes if path.startswith("block_")}
  return names.unrolled(architecture.table, len(layers))


def match(
  tensors: Mapping[str, safetensors.Tensor],
  architecture: language.Architecture,
  abstract: Params,
  biasless: tuple[str, ...] = (),
) -> matching.Places:
  """Where each parameter is, see `matching.match`.

  Args:
    tensors: of the files.
    abstract: parameters of the model of config.json.
    biasless: parts of layers whose biases are missing and become zero.
  """
  shapes = matching.unrolled_shapes(abstract)
  ends = tuple(f".{part}." for part in biasless)
  wanted = {
    name: item
    for name, item in matching.plan(_entries(architecture, shapes), shapes).items()
    if not (name.endswith(".bias") and any(end in name for end in ends))
  }
  found = _canonical(tensors, architecture, wanted)
  return matching.match(wanted, found, "the weights")


def foreign_tensors(
  architecture: language.Architecture, params: Params
) -> dict[str, safetensors.LazyTensor]:
  """The foreign tensors of a model; biases that only the format has are zero."""
  shapes = matching.unrolled_shapes(params)
  zeros = {
    path: np.zeros(shape, np.float32)
    for path, shape in _biases(architecture, shapes).items()
    if path not in shapes
  }
  everything = {**tree.flatten(params), **zeros}
  return matching.foreign_tensors(plan(architecture, params), everything)


def plan(architecture: language.Architecture, abstract: Params) -> matching.Plan:
  """The foreign tensors of a model, biases that only the format has among them."""
  shapes = matching.unrolled_shapes(abstract)
  shapes = {**_biases(architecture, shapes), **shapes}
  return matching.plan(_entries(architecture, shapes), shapes)


def _biases(
  architecture: language.Architecture, shapes: Mapping[str, names.Shape]
) -> dict[str, names.Shape]:
  """Shapes of the format's biases, which this model may lack."""
  if not architecture.has_biases:
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


def open_model(
  folder: pathlib.Path,
) -> tuple[language.Architecture, dict[str, Any], dict[str, safetensors.Tensor], tuple]:
  """Reads config.json and the headers of the weights in a folder.

  Returns:
    The family, the model block, the tensors, and the parts of layers without biases.

  Raises:
    InputError: anything unknown or damaged.
  """
  config = files.read_json(folder / "config.json")
  architecture, block = architectures.read(config)
  tensors = safetensors.open_folder(folder)
  matching.check_depth(block["num_layers"], tensors, "config.json's layers")
  return architecture, block, tensors, architecture.biasless(config)
