"""A LoRA adapter from elsewhere, around a run: a workdir of its own, nothing merged."""

import pathlib
from collections.abc import Iterable
from typing import Any

import optax

from gen_jax.convert import adapters, lora_files, peft
from gen_jax.data import kept
from gen_jax.runs import importing, workdir
from gen_jax.runs import run as runs
from gen_jax.runs import weights as weighing
from gen_jax.system import files
from gen_jax.types import InputError


def find(source: pathlib.Path) -> pathlib.Path:
  """The file of an adapter: itself, PEFT's in its folder, or the only one there.

  Raises:
    InputError: none, or several.
  """
  if source.is_file():
    return source
  if peft.is_here(source):
    return peft.weights(source)
  found = sorted(source.glob("*.safetensors"))
  if len(found) != 1:
    raise InputError(
      f"{source} has no {lora_files.CONFIG}, and {len(found)} .safetensors files; name"
      " the adapter's folder, or its file"
    )
  return found[0]


def write(
  directory: pathlib.Path,
  file: pathlib.Path,
  base: runs.Run,
  overrides: Iterable[tuple[str, Any]],
  origin: dict[str, Any],
) -> dict[str, Any]:
  """Writes a workdir of an adapter and its base; returns its adapter block.

  Args:
    file: of the adapter.
    base: what it changes; all it needs is copied.
    overrides: of the config.
    origin: where the adapter comes from.

  Raises:
    InputError: an adapter of another model, or a damaged one.
  """
  model, abstract = base.experiment, base.experiment.abstract_params()
  about = base.base_origin()
  plans = base.family.adapter_plans(model, about)
  pairs = lora_files.read(file, plans, f"{base.workdir}")
  block, matrices = adapters.read(pairs, plans, abstract)
  config = {**base.config, "adapter": block}
  config["init_from"] = {"workdir": str(base.workdir)}
  config["train"] = {**config["train"], "ema_decay": None}  # of the base's training
  if workdir.has_autoencoder(base.home):
    codec = {**config["task"]["codec"], "workdir": str(base.workdir)}
    config["task"] = {**config["task"], "codec": codec}
  made = runs.fresh(config, None, overrides)
  experiment = made.experiment
  state = experiment.abstract_state(optax.identity())
  params = adapters.place(matrices, state.params)
  home = base.tokenizer_folder
  names = sorted(p.name for p in home.iterdir()) if home else []
  told: dict[str, Any] = {k: about[k] for k in ("is_linear", "scheduler") if k in about}
  origin = {**told, "base": about.get("from"), **origin}

  def write_more():
    if model.class_names is not None:
      kept.write_class_names(directory, model.class_names)
    weighing.load_base(directory, experiment)
    weighing.load_frozen(experiment, directory)

  names = [name for name in names if name != files.HASHES]
  args = (directory, made.config, params, home, names, origin, write_more)
  importing.write(*args)
  return block
