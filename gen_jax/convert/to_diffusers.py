"""A run's latent diffusion as diffusers, or Stable Diffusion's one file, holds it."""

from typing import Any

import numpy as np

from gen_jax import build, ranges, safetensors, tree
from gen_jax.convert import (
  diffusers,
  diffusers_schedulers,
  dit,
  matching,
  stable_diffusion,
  target,
)
from gen_jax.system import copies, progress
from gen_jax.types import InputError


def export(args, opened) -> dict[str, Any]:
  """Latent diffusion as a folder of diffusers, or by its original names as one file.

  Args:
    args: of `gen-jax export`.
    opened: the run.
  """
  experiment, task = opened.experiment, opened.experiment.task
  if "autoencoder" not in experiment.frozen:
    raise InputError(f"{args.workdir} draws pixels; only latent diffusion is exported")
  if task.condition is None and task.reads == ("label",):
    return _dit(args, opened)
  if task.reads != ("caption",):
    raise InputError(
      f"{args.workdir} is not exported: Stable Diffusion is conditioned on text, DiT on"
      " labels"
    )
  if task.network.config.width_ratio != 1.0:
    raise InputError(
      f"{args.workdir} is not exported: its network has a base_width, and diffusers has"
      " no UNet with the factors of muP"
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
  is_file = args.to.suffix == ".safetensors"
  column = stable_diffusion.FILE if is_file else stable_diffusion.FOLDER
  plans = {
    name: matching.foreign_tensors(model.plan(weights[name], column), weights[name])
    for name, model in models.items()
  }
  dtype = target.DTYPES[args.dtype]
  if is_file:
    diffusers.check_v1(described)
  with target.whole(args.to) as partial:
    if is_file:
      everything = {k: v for plan in plans.values() for k, v in plan.items()}
      safetensors.write_file(partial, everything, everything, dtype)
    else:
      partial.mkdir()
      if home := opened.tokenizer_folder:
        copies.copy(home, partial / "tokenizer", target.NOT_FOREIGN)
      diffusers.write_folder(partial, described, plans, dtype)
  params = {name: tree.size(weights[name]) for name in models}
  return target.told(args, chosen, "Stable Diffusion", params)


def _dit(args, opened) -> dict[str, Any]:
  """A DiT and its autoencoder as a folder of diffusers."""
  experiment, task = opened.experiment, opened.experiment.task
  config = task.network.config
  if config.params_name != "dit" or args.to.suffix == ".safetensors":
    raise InputError(
      f"--to {args.to}: of models of classes DiTs are exported, to a folder; this is a"
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
  with target.whole(args.to) as partial:
    partial.mkdir()
    diffusers.write_folder(partial, described, plans, target.DTYPES[args.dtype])
  sizes = {**chosen.params, "autoencoder": frozen}
  return target.told(args, chosen, "DiT", {n: tree.size(p) for n, p in sizes.items()})


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
    progress.warn(
      f"warning: {written.name} steps on {written.grid}, not quite on the grid of"
      f" this config, {grid}"
    )
  return written
