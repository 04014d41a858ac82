"""A LoRA adapter of a language model as a folder of PEFT.

    adapter_config.json        rank, alpha, and the modules it changes
    adapter_model.safetensors  base_model.model.M.lora_A.weight [r, in], lora_B [out, r]

`lora_files` reads it; here it is found, and written.

Source: PEFT 0.21; `tools/make_adapter_golden.py` compares the two.
"""

import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from gen_jax import safetensors
from gen_jax.convert import adapters, lora_files
from gen_jax.system import files
from gen_jax.types import InputError

_STEM = "adapter_model"


def is_here(folder: pathlib.Path) -> bool:
  """Whether a folder holds an adapter."""
  return (folder / lora_files.CONFIG).is_file()


def weights(folder: pathlib.Path) -> pathlib.Path:
  """The file of the matrices.

  Raises:
    InputError: it is not there.
  """
  file = folder / f"{_STEM}.safetensors"
  if not file.is_file():
    raise InputError(
      f"{folder} has no {file.name}, the weights of the adapter"
      f"{safetensors.unopened(folder)}"
    )
  return file


def write_folder(
  folder: pathlib.Path,
  modules: Mapping[str, adapters.Module],
  everything: Collection[str],
  about: Mapping[str, Any],
  dtype: str,
) -> None:
  """Writes both files into an existing folder.

  Args:
    modules: by their names, of `adapters.write`.
    everything: names of all modules of the model.
    about: more of adapter_config.json; r and lora_alpha are of one pair of ours.
    dtype: a key of `safetensors.DTYPES`.
  """
  ranks, alphas = {}, {}
  for parts in {module.parts for module in modules.values()} - {1}:
    own = {name for name, module in modules.items() if module.parts == parts}
    for end in adapters.endings(own, modules, "."):
      ranks[end], alphas[end] = parts * about["r"], parts * about["lora_alpha"]
  # An end that found a module around others would be refused by PEFT.
  around = {
    name[: at.start()] for name in everything for at in re.finditer(r"\.", name)
  }
  config = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "inference_mode": True,
    "bias": "none",
    "lora_dropout": 0.0,
    "target_modules": adapters.endings(modules.keys(), {*everything, *around}, "."),
    "rank_pattern": ranks,
    "alpha_pattern": alphas,
    **about,
  }
  files.write_json(folder / lora_files.CONFIG, config)
  tensors = {}
  for name, module in modules.items():
    for letter, half in (("A", module.down), ("B", module.up)):
      tensors[f"base_model.model.{name}.lora_{letter}.weight"] = lazy(half)
  safetensors.write_folder(folder, tensors, dtype, stem=_STEM)


def lazy(array: np.ndarray) -> safetensors.LazyTensor:
  """An array as `safetensors` writes it."""
  return safetensors.LazyTensor(array.shape, lambda: array)
