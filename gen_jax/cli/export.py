"""`gen-jax export`: a workdir's model as transformers or diffusers load it."""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

from gen_jax import build, ranges, safetensors, tree
from gen_jax.cli import flags
from gen_jax.convert import (
  architectures,
  diffusers,
  diffusers_schedulers,
  dit,
  huggingface,
  matching,
  stable_diffusion,
)
from gen_jax.data import tokenizers
from gen_jax.runs import run as runs
from gen_jax.runs import weights as weighing
from gen_jax.system import files
from gen_jax.tasks import diffusion, lm
from gen_jax.types import InputError, unknown

_NOT_FOREIGN = shutil.ignore_patterns(files.HASHES)
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def add_arguments(parser) -> None:
  """See `gen-jax export --help`."""
  flags.add_model(parser)
  parser.add_argument(
    "--to",
    action=flags.Path,
    required=True,
    metavar="DIR",
    help="new folder; FILE.safetensors: Stable Diffusion 1 by its original names",
  )
  parser.add_argument(
    "--dtype", default="float32", help="float32 (default), bfloat16 or float16"
  )


def run(args) -> dict:
  """Writes the folder, whole or not at all."""
  if args.dtype not in _DTYPES:
    raise unknown("--dtype", args.dtype, _DTYPES)
  target = args.to
  if target.exists():
    raise InputError(f"--to {target} is there already; take another folder")
  opened = runs.open_run(args.workdir, args.overrides)
  experiment = opened.experiment
  if isinstance(experiment.task, diffusion.Diffusion):
    return _images(args, opened, target)
  if not isinstance(experiment.task, lm.LanguageModel):
    raise InputError(
      f"{args.workdir} holds neither a language model nor latent diffusion; only those"
      " are exported"
    )
  model = experiment.task.model.config
  architecture = architectures.fitting(model)
  weights = opened.weights(args.checkpoint, args.weights)
  plan = huggingface.foreign_tensors(architecture, weights.params)
  home, tokenizer = opened.tokenizer_folder, experiment.tokenizer
  with _whole(target) as partial:
    if tokenizer is None:
      partial.mkdir()
    else:
      shutil.copytree(home, partial, ignore=_NOT_FOREIGN)
      _name_tokenizer(partial)
    safetensors.write_folder(partial, plan, _DTYPES[args.dtype])
    ids = _ids(tokenizer)
    foreign = {
      "architectures": [architecture.name],
      "model_type": architecture.model_type,
      "torch_dtype": args.dtype,
      **{name: ids[name] for name in ("bos_token_id", "eos_token_id")},
      **architecture.write(model),
    }
    _write_json(partial / "config.json", foreign)
    _write_json(
      partial / "generation_config.json", {**ids, **_drawing(experiment.sampling)}
    )
  return _told(args, weights, architecture.name, tree.size(weights.params))


def _told(args, weights: weighing.Weights, name: str, params: Any) -> dict:
  """Says what was written, and returns it as the command's result."""
  print(
    f"{args.to}: {name}, {args.dtype}, the {weights.name} weights of step"
    f" {weights.step}"
  )
  return {
    "path": str(args.to),
    "architecture": name.replace(" ", ""),
    "params": params,
    "step": weights.step,
    "weights": weights.name,
  }


def _images(args, opened: runs.Run, target: pathlib.Path) -> dict:
  """Latent diffusion as a folder of diffusers, or by its original names as one file."""
  experiment, task = opened.experiment, opened.experiment.task
  if "autoencoder" not in experiment.frozen:
    raise InputError(f"{args.workdir} draws pixels; only latent diffusion is exported")
  if task.condition is None and task.reads == ("label",):
    return _dit(args, opened, target)
  if task.reads != ("caption",):
    raise InputError(
      f"{args.workdir} is not exported: Stable Diffusion is conditioned on text, DiT on"
      " labels"
    )
  chosen, origin = opened.weights(args.checkpoint, args.weights), opened.origin()
  where = f"{args.workdir}/import.json: is_linear"
  is_linear = ranges.typed(origin.get("is_linear", False), bool, where)
  vae, latents = _autoencoder(experiment, chosen)
  size, scheduler = experiment.data.image_size, _scheduler(experiment, origin)
  described = diffusers.describe(task, vae.config, latents, size, is_linear, scheduler)
  models = {
    "unet": stable_diffusion.Model("unet", task.network.config, is_linear),
    "autoencoder": vae,
    "text_encoder": stable_diffusion.Model(
      "text_encoder", task.conditioning.text_encoder.config
    ),
  }
  weights = {**chosen.params, "autoencoder": chosen.frozen["autoencoder"]}
  is_file = target.suffix == ".safetensors"
  column = stable_diffusion.FILE if is_file else stable_diffusion.FOLDER
  plans = {
    name: matching.foreign_tensors(model.plan(weights[name], column), weights[name])
    for name, model in models.items()
  }
  dtype = _DTYPES[args.dtype]
  if is_file:
    diffusers.check_v1(described)
  with _whole(target) as partial:
    if is_file:
      everything = {k: v for plan in plans.values() for k, v in plan.items()}
      safetensors.write_file(partial, everything, everything, dtype)
    else:
      partial.mkdir()
      if home := opened.tokenizer_folder:
        shutil.copytree(home, partial / "tokenizer", ignore=_NOT_FOREIGN)
      diffusers.write_folder(partial, described, plans, dtype)
  params = {name: tree.size(weights[name]) for name in models}
  return _told(args, chosen, "Stable Diffusion", params)


def _dit(args, opened: runs.Run, target: pathlib.Path) -> dict:
  """A DiT and its autoencoder as a folder of diffusers."""
  experiment, task = opened.experiment, opened.experiment.task
  config = task.network.config
  if config.params_name != "dit" or target.suffix == ".safetensors":
    raise InputError(
      f"--to {target}: of models of classes DiTs are exported, to a folder; this is a"
      f" {config.params_name}"
    )
  chosen = opened.weights(args.checkpoint, args.weights)
  vae, latents = _autoencoder(experiment, chosen)
  scheduler = _scheduler(experiment, opened.origin())
  names = experiment.class_names
  described = dit.describe(task, vae.config, latents, names, scheduler)
  model = dit.Model(config, task.conditioning.encoder.config)
  frozen = chosen.frozen["autoencoder"]
  plans = {
    "transformer": matching.foreign_tensors(model.plan(chosen.params), chosen.params),
    "autoencoder": matching.foreign_tensors(
      vae.plan(frozen, stable_diffusion.FOLDER), frozen
    ),
  }
  with _whole(target) as partial:
    partial.mkdir()
    diffusers.write_folder(partial, described, plans, _DTYPES[args.dtype])
  sizes = {**chosen.params, "autoencoder": frozen}
  return _told(args, chosen, "DiT", {n: tree.size(p) for n, p in sizes.items()})


def _autoencoder(experiment, chosen) -> tuple[stable_diffusion.Model, dict[str, Any]]:
  """The autoencoder, and mean and std of each latent channel."""
  block = experiment.config["task"]["codec"]["autoencoder"]
  vae = stable_diffusion.Model("autoencoder", build.build("autoencoder", block).config)
  latents = {n: np.asarray(chosen.frozen[n]).tolist() for n in ("mean", "std")}
  return vae, latents


def _scheduler(experiment, origin: dict[str, Any]) -> diffusers_schedulers.Written:
  """The scheduler of the config's sampler; warns where its grid is another."""
  sampling, task = experiment.config["sampling"], experiment.task
  grid = sampling.get("grid", "uniform")
  written = diffusers_schedulers.write(
    *(task.schedule, task.target),
    *(sampling.get("sampler", "ddim"), grid),
    origin.get("scheduler"),
  )
  if written.grid:
    weighing.warn(
      f"warning: {written.name} steps on {written.grid}, not quite on the grid of"
      f" this config, {grid}"
    )
  return written


@contextlib.contextmanager
def _whole(target: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields where to write a folder or file; it is named `target` when all is there."""
  partial = target.with_name(f"{target.name}.partial")
  target.parent.mkdir(parents=True, exist_ok=True)
  _remove(partial)
  try:
    yield partial
    partial.rename(target)
  except BaseException:
    _remove(partial)
    raise


def _remove(path: pathlib.Path) -> None:
  shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(True)


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
  files.write(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def _ids(tokenizer: tokenizers.Tokenizer | None) -> dict[str, Any]:
  """Ids that open and end texts; null, too, must be said: families have defaults."""
  if tokenizer is None:
    return dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
  stops = list(tokenizer.stops)
  return {
    "bos_token_id": tokenizer.bos,
    "eos_token_id": stops if len(stops) > 1 else tokenizer.eos,
    "pad_token_id": tokenizer.eos,
  }


def _drawing(sampling) -> dict[str, Any]:
  """The config's sampling in the words of generation_config.json."""
  common = {"max_new_tokens": sampling.max_tokens}
  if sampling.temperature == 0:
    return {**common, "do_sample": False}
  return {
    **common,
    "do_sample": True,
    "temperature": sampling.temperature,
    "top_k": sampling.top_k or 0,
    "top_p": sampling.top_p,
    **({"min_p": sampling.min_p} if sampling.min_p else {}),
  }


def _name_tokenizer(folder: pathlib.Path) -> None:
  """Names the class of a tokenizer that was made here, or it would be guessed."""
  path = folder / "tokenizer_config.json"
  if not (folder / "tokenizer.json").exists():
    return
  config = files.read_json(path) if path.exists() else {}
  if "tokenizer_class" not in config:
    _write_json(path, {**config, "tokenizer_class": "PreTrainedTokenizerFast"})
