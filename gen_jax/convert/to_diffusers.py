"""A run's latent diffusion as diffusers, or Stable Diffusion's one file, holds it."""

from typing import Any

import numpy as np

from gen_jax import build, ranges, safetensors, tree
from gen_jax.convert import (
  adapters,
  diffusers,
  diffusers_schedulers,
  dit,
  folding,
  lora_files,
  matching,
  peft,
  stable_diffusion,
  target,
)
from gen_jax.convert import diffusers_configs as configs
from gen_jax.data import pipeline
from gen_jax.models import autoencoder as kl
from gen_jax.system import copies, files, progress
from gen_jax.types import InputError

LORA_NAME = "pytorch_lora_weights.safetensors"  # that diffusers looks for


def export(args, opened) -> dict[str, Any]:
  """Latent diffusion as a folder of diffusers, or by its original names as one file.

  Args:
    args: of `gen-jax export`.
    opened: the run.
  """
  experiment, task = opened.experiment, opened.experiment.task
  if args.adapter:
    return _adapter(args, opened)
  if "autoencoder" not in experiment.frozen:
    raise InputError(
      f"{args.workdir} draws pixels; only latent diffusion is exported, as of"
      " configs/diffusion/ldm_emoji.py:diffusers"
    )
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
  chosen, origin = opened.weights(args.checkpoint, args.weights), opened.base_origin()
  vae, frozen, latents = _autoencoder(experiment, chosen)
  size, scheduler = experiment.data.image_size, _scheduler(experiment, origin)
  models = {**_trained(task, origin), "autoencoder": vae}
  is_linear = models["unet"].is_linear
  described = diffusers.describe(task, vae.config, latents, size, is_linear, scheduler)
  weights, network = {**chosen.params, "autoencoder": frozen}, task.network.config
  if network.timestep_offset != -1.0:  # there, a chain counts its steps from 0
    shift = 1.0 + network.timestep_offset
    weights["unet"] = folding.time(weights["unet"], network.width, shift)
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
        _name_tokenizer(partial / "tokenizer", experiment, described)
      diffusers.write_folder(partial, described, plans, dtype)
  params = {name: tree.size(weights[name]) for name in models}
  return target.told(args, chosen, "Stable Diffusion", params)


def _name_tokenizer(folder, experiment, described) -> None:
  """Makes a tokenizer other than CLIP's give captions as the model has learned them.

  The pipeline asks it for a fixed length: cut before eos, filled up as here.
  """
  path, tokenizer = folder / "tokenizer.json", experiment.tokenizer
  if (folder / "merges.txt").exists() or not path.exists() or tokenizer is None:
    return
  content = files.read_json(path)
  texts = {token["id"]: token["content"] for token in content["added_tokens"]}
  pad = tokenizer.eos if tokenizer.pad is None else tokenizer.pad
  # A caption of one letter shows what stands around it.
  ids, inner = pipeline.caption_ids("a", tokenizer), tokenizer.encode("a")
  before, after = ids[: -len(inner) - 1], ids[-1:]
  if not {*before, *after, pad} <= texts.keys():
    progress.warn(f"warning: {path.name} marks captions otherwise than the model's")
    return

  def marks(side):
    return [{"SpecialToken": {"id": texts[i], "type_id": 0}} for i in side]

  whole = [*marks(before), {"Sequence": {"id": "A", "type_id": 0}}, *marks(after)]
  special = {
    texts[i]: {"id": texts[i], "ids": [i], "tokens": [texts[i]]}
    for i in (*before, *after)
  }
  content["post_processor"] = {
    "type": "TemplateProcessing",
    "single": whole,
    "pair": [*whole, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": special,
  }
  name = "PreTrainedTokenizerFast"
  settings = {
    "tokenizer_class": name,
    "model_max_length": experiment.data.caption_length,
    "eos_token": texts[tokenizer.eos],
    "pad_token": texts[pad],
  }
  files.write_json(path, content)
  files.write_json(folder / "tokenizer_config.json", settings)
  described[diffusers.INDEX]["tokenizer"] = ["transformers", name]


def _trained(task, origin) -> dict[str, stable_diffusion.Model]:
  """The UNet and the text encoder."""
  linear = ranges.typed(origin.get("is_linear", False), bool, "import.json: is_linear")
  encoder = task.conditioning.text_encoder.config
  return {
    "unet": stable_diffusion.Model("unet", task.network.config, linear),
    "text_encoder": stable_diffusion.Model("text_encoder", encoder),
  }


def adapter_plans(experiment, origin) -> dict[str, matching.Plan]:
  """See `families.base.Family`.

  Raises:
    InputError: another network than Stable Diffusion's or a DiT.
  """
  task, abstract = experiment.task, experiment.abstract_params()
  if _is_dit(task):
    lora_files.check_width(task.network.config)
    return {lora_files.TRANSFORMER: _dit_model(task).adapter_plan(abstract)}
  if task.reads != ("caption",):
    raise InputError(
      "LoRA files of images are those of Stable Diffusion's UNet and text, and of DiTs"
    )
  models = _trained(task, origin)
  configs.write_text_encoder(models["text_encoder"].config)
  configs.write_unet(models["unet"].config, 1, False, 1)
  return {n: m.plan(abstract[n], stable_diffusion.FOLDER) for n, m in models.items()}


def _adapter(args, opened) -> dict[str, Any]:
  """A run's adapter alone: diffusers' file in a folder, or kohya's.

  diffusers takes alpha for r where a file has none, so that up is scaled; kohya's file
  has an alpha for each module.
  """
  chosen = opened.adapter_weights(args.checkpoint, args.weights)
  adapter = opened.experiment.adapter
  plans = adapter_plans(opened.experiment, opened.base_origin())
  if lora_files.TRANSFORMER in plans:
    return _dit_adapter(args, opened, chosen, plans)
  is_kohya, tensors = args.to.suffix == ".safetensors", {}
  for network, modules in adapters.write(chosen.params, plans, "diffusers").items():
    for name, module in modules.items():
      if is_kohya:
        stem = f"{lora_files.NETWORKS[network][-2]}{name.replace('.', '_')}"
        alpha = np.float32(adapter.alpha * module.parts)
        own = {"lora_down.weight": module.down, "lora_up.weight": module.up}
        own["alpha"] = np.asarray(alpha)
      else:
        stem = f"{network}.{name}"
        up = np.float32(adapter.scale) * module.up
        own = {"lora_A.weight": module.down, "lora_B.weight": up}
      tensors |= {f"{stem}.{end}": peft.lazy(half) for end, half in own.items()}
  dtype = target.DTYPES[args.dtype]
  with target.whole(args.to) as partial:
    if is_kohya:
      safetensors.write_file(partial, tensors, tensors, dtype)
    else:
      partial.mkdir()
      safetensors.write_file(partial / LORA_NAME, tensors, tensors, dtype)
  kind = "kohya" if is_kohya else "diffusers"
  name = f"a LoRA adapter of Stable Diffusion, by {kind}'s names"
  return target.told(args, chosen, name, tree.size(chosen.params))


def _is_dit(task) -> bool:
  return task.reads == ("label",) and task.network.config.params_name == "dit"


def _dit_model(task) -> dit.Model:
  return dit.Model(task.network.config, task.conditioning.encoder.config)


def _dit_adapter(args, opened, chosen, plans) -> dict[str, Any]:
  """A DiT's adapter alone, as PEFT loads it around diffusers' transformer."""
  if args.to.suffix == ".safetensors":
    raise InputError(f"--to {args.to}: a DiT's adapter is a folder of PEFT; name one")
  experiment = opened.experiment
  network = lora_files.TRANSFORMER
  modules = adapters.write(chosen.params, plans, "DiTTransformer2DModel")[network]
  everything = _dit_model(experiment.task).plan(experiment.abstract_params())
  origin = opened.base_origin()
  about = {
    "task_type": None,
    "base_model_name_or_path": origin.get("base", origin.get("from")),
    "r": experiment.adapter.rank,
    "lora_alpha": experiment.adapter.alpha,
  }
  names = [n.removesuffix(".weight") for n in everything if n.endswith(".weight")]
  with target.whole(args.to) as partial:
    partial.mkdir()
    peft.write_folder(partial, modules, names, about, target.DTYPES[args.dtype])
  return target.told(args, chosen, "a LoRA adapter of a DiT", tree.size(chosen.params))


def _dit(args, opened) -> dict[str, Any]:
  """A DiT and its autoencoder as a folder of diffusers."""
  experiment, task = opened.experiment, opened.experiment.task
  if not _is_dit(task) or args.to.suffix == ".safetensors":
    raise InputError(
      f"--to {args.to}: of models of classes DiTs are exported, to a folder; this is a"
      f" {task.network.config.params_name}"
    )
  chosen = opened.weights(args.checkpoint, args.weights)
  vae, frozen, latents = _autoencoder(experiment, chosen)
  scheduler = _scheduler(experiment, opened.base_origin())
  names = experiment.class_names
  described = dit.describe(task, vae.config, latents, names, scheduler)
  plan = _dit_model(task).plan(chosen.params)
  plans = {
    "transformer": matching.foreign_tensors(plan, chosen.params),
    "autoencoder": matching.foreign_tensors(
      vae.plan(frozen, stable_diffusion.FOLDER), frozen
    ),
  }
  with target.whole(args.to) as partial:
    partial.mkdir()
    diffusers.write_folder(partial, described, plans, target.DTYPES[args.dtype])
  sizes = {**chosen.params, "autoencoder": frozen}
  return target.told(args, chosen, "DiT", {n: tree.size(p) for n, p in sizes.items()})


def _autoencoder(experiment, chosen) -> tuple[stable_diffusion.Model, Any, Any]:
  """The autoencoder, its weights, and mean and std of each latent channel.

  Where these differ between channels they are folded into the weights.
  """
  block = experiment.config["task"]["codec"]["autoencoder"]
  vae = stable_diffusion.Model("autoencoder", build.build("autoencoder", block).config)
  latents = {n: np.asarray(chosen.frozen[n]).tolist() for n in ("mean", "std")}
  weights, is_kl = chosen.frozen["autoencoder"], isinstance(vae.config, kl.Config)
  if is_kl and any(len(set(values)) > 1 for values in latents.values()):
    size = len(latents["mean"])
    weights = folding.latents(weights, **latents)
    latents = {"mean": [0.0] * size, "std": [1.0] * size}
  return vae, weights, latents


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
