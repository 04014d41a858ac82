"""`gen-jax import`: released weights in, a workdir out that samples and evaluates."""

from __future__ import annotations

import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import jax
import optax

from gen_jax import experiment as experiments
from gen_jax import safetensors, tree
from gen_jax.cli import flags
from gen_jax.convert import (
  architectures,
  diffusers,
  dit,
  foreign,
  hub,
  huggingface,
  lora_files,
  matching,
  stable_diffusion,
  taesd,
)
from gen_jax.data import kept, latents, tokenizers
from gen_jax.errors import InputError
from gen_jax.runs import adapting, importing, lease, workdir
from gen_jax.runs import run as runs
from gen_jax.runs import weights as weighing
from gen_jax.system import files


def add_arguments(parser) -> None:
  """See `gen-jax import --help`."""
  add = parser.add_argument
  add(
    "--from", required=True, metavar="DIR_OR_ID", help="a folder, or org/name of a hub"
  )
  add("--workdir", action=flags.Path, required=True, help="new folder")
  add("--revision", help="revision of the hub's model; default: the newest")
  add(
    "--lora",
    action=flags.Paths,
    default=[],
    metavar="FILE",
    help="for Stable Diffusion: merged into its weights; may be repeated",
  )
  add(
    "--lora_scale",
    action="append",
    default=[],
    type=float,
    help="scale of each --lora; default 1, 0 turns it off",
  )
  add(
    "--base",
    action=flags.Path,
    metavar="WORKDIR",
    help="--from is a LoRA adapter of this workdir's model; it stays an adapter",
  )
  add(
    "--text", action=flags.Path, metavar="FILES", help="evaluation text; default: pydoc"
  )
  add("--scan_layers", action="store_true", help="stack the layers: compiles faster")
  add(
    "--padded_vocab",
    action="store_true",
    help="allow a model with more ids than its tokenizer",
  )
  parser.epilog = (
    "Reads config.json, *.safetensors and the tokenizer's files; nothing is\n"
    "unpickled or executed. Set --config.mesh.*, --config.data.* and the like as\n"
    "in `gen-jax train`."
  )


def _overridden(config: dict[str, Any], args) -> dict[str, Any]:
  from gen_jax.build import overrides as overriding  # see `lazy`

  return overriding.apply(config, args.overrides)


def run(args) -> dict:
  """Checks everything, reads the weights, and only then writes."""
  directory = args.workdir
  is_free = directory.is_dir() and {p.name for p in directory.iterdir()} <= {lease.NAME}
  if directory.exists() and not is_free:
    raise InputError(f"--workdir {directory} is not empty; take another one")
  source = hub.locate(getattr(args, "from"), args.revision)
  if args.base:
    return _adapter(args, source, directory)
  is_dit = dit.is_here(source.folder)
  if diffusers.is_image_model(source.folder) and not is_dit:
    return _images(args, source, directory)
  if args.lora or args.lora_scale:
    raise InputError("--lora is for Stable Diffusion")
  if is_dit:
    return _dit(args, source, directory)
  if taesd.is_here(source.folder):
    return _autoencoder(args, source, directory)
  _check_contents(source.folder)
  architecture, block, tensors, biasless = huggingface.open_model(source.folder)
  block = {**block, "scan_layers": args.scan_layers}
  tokenizer = _tokenizer(source.folder, block["vocab_size"], args.padded_vocab)
  config = _config(block, directory, args.text)
  config = _overridden(config, args)
  experiment = experiments.make(config, None)
  abstract = experiment.abstract_state(optax.identity()).params
  places = huggingface.match(tensors, architecture, abstract, biasless)
  params = matching.load(places, abstract)
  names = ("config.json", *tokenizer)
  others = [source.folder / name for name in names]
  origin = _origin(source, architecture.name, source.folder, tensors.values(), others)
  unused = architectures.unused_keys(files.read_json(source.folder / "config.json"))
  if unused:
    weighing.warn(f"config.json: not used: {', '.join(unused)}")
  importing.write(directory, config, params, source.folder, tokenizer, origin)
  if not tokenizer:
    weighing.warn(
      f"warning: {source.folder} has no tokenizer; the model can be exported, but reads"
      f" and writes no text until {directory / 'tokenizer'} has its files"
    )
  num_params = tree.size(params)
  print(f"{directory}: {architecture.name}, {num_params:,} parameters of {source.name}")
  return {"workdir": str(directory), "params": num_params, "step": 0, **origin}


def _adapter(args, source: hub.Source, directory: pathlib.Path) -> dict:
  """A LoRA adapter of PEFT, diffusers or kohya, around another workdir's model."""
  file, base = adapting.find(source.folder), runs.open_run(args.base)
  settings = file.with_name(lora_files.CONFIG)
  others = [settings] if settings.is_file() else []
  tensors = safetensors.read_header(file).values()
  origin = _origin(source, "LoRA", file.parent, tensors, others)
  block = adapting.write(directory, file, base, args.overrides, origin)
  print(
    f"{directory}: {source.name} around {args.base}: rank {block['rank']}, alpha"
    f" {block['alpha']:g}"
  )
  return {"workdir": str(directory), "step": 0, "adapter": block, **origin}


def _check_contents(folder: pathlib.Path) -> None:
  """Raises InputError for a folder without config.json, and says what is in it."""
  if (folder / "config.json").is_file():
    return
  if (folder / "adapter_config.json").is_file():
    what = "it is a LoRA adapter of PEFT: import its base model, and say --base"
  elif found := sorted(folder.glob("*.safetensors")):
    kind = foreign.kind(safetensors.read_header(found[0]))
    what = f"{found[0].name} is {kind}" if kind else f"it has {found[0].name} alone"
  else:
    what = safetensors.unopened(folder).removeprefix("; ") or "it has no weights"
  raise InputError(
    f"{folder} has no config.json, and no model_index.json; {what}; supported: folders"
    f" of {', '.join(a.title for a in architectures.ALL)}, Stable Diffusion, DiT and"
    " TAESD, and Stable Diffusion 1 in one file"
  )


def _images(args, source: hub.Source, directory: pathlib.Path) -> dict:
  """Stable Diffusion: a folder of diffusers, or a single file."""
  is_file = source.folder.is_file()
  opened = (diffusers.open_file if is_file else diffusers.open_folder)(source.folder)
  folder = source.folder.parent if is_file else source.folder
  encoder = opened.task["conditioning"]["text_encoder"]
  names = _tokenizer(folder / "tokenizer", encoder["vocab_size"], True)
  config = _image_config(
    opened.task,
    tokenizer={"name": "file", "path": str(directory / "tokenizer")},
    image_size=opened.side,
    channels=opened.task["codec"]["autoencoder"]["image_channels"],
    caption_length=encoder["max_length"],
  )
  drawn = {"sampler": opened.sampler, "grid": opened.grid, "num_steps": 50}
  config["sampling"] |= drawn
  config = _overridden(config, args)
  experiment = experiments.make(config, None)
  models = opened.models()
  abstract = {
    **experiment.abstract_params(),
    "autoencoder": experiment.frozen["autoencoder"],
  }
  places = {
    name: stable_diffusion.match(
      model, opened.tensors[name], abstract[name], opened.column
    )
    for name, model in models.items()
  }
  loras = _loras(args)
  plans = {n: models[n].plan(abstract[n], 0) for n in lora_files.NETWORKS}
  for file, scale in loras.items():
    places = lora_files.merge(file, scale, places, plans)
  # All is checked before anything is read.
  loaded = {name: matching.load(places[name], abstract[name]) for name in models}
  vae = loaded.pop("autoencoder")
  tensors = [t for found in opened.tensors.values() for t in found.values()]
  others = [folder / "tokenizer" / name for name in names]
  origin = {
    **_origin(source, "StableDiffusion", folder, tensors, others),
    "is_linear": opened.is_linear,
    "scheduler": opened.scheduler,
    "lora": [[str(f), scale, files.sha256(f)] for f, scale in loras.items()],
  }

  def write_more():
    importing.save_autoencoder(directory, config, vae, opened.latents)

  importing.write(
    directory, config, loaded, folder / "tokenizer", names, origin, write_more
  )
  if not names:
    weighing.warn(
      f"warning: {folder} has no tokenizer; put CLIP's vocab.json and merges.txt into"
      f" {directory / 'tokenizer'} before drawing"
    )
  sizes = {n: tree.size(p) for n, p in {**loaded, "autoencoder": vae}.items()}
  listed = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
  print(f"{directory}: {source.name}: {listed} parameters")
  return {"workdir": str(directory), "params": sizes, "step": 0, **origin}


def _dit(args, source: hub.Source, directory: pathlib.Path) -> dict:
  """A DiT and its autoencoder, a folder of diffusers."""
  opened = dit.open_folder(source.folder)
  vae = opened.task["codec"]["autoencoder"]
  config = _image_config(
    opened.task, image_size=opened.side, channels=vae["image_channels"]
  )
  drawn = {"sampler": opened.scheduler.sampler, "grid": opened.scheduler.grid}
  config["sampling"] |= {**drawn, "num_steps": 50, "guidance_scale": 4.0}
  config = _overridden(config, args)
  experiment = experiments.make(config, None)
  abstract, frozen = experiment.abstract_params(), experiment.frozen["autoencoder"]
  places = dit.match(opened.model(), opened.tensors["transformer"], abstract)
  own = stable_diffusion.match(
    opened.autoencoder(), opened.tensors["vae"], frozen, stable_diffusion.FOLDER
  )
  loaded, vae = matching.load(places, abstract), matching.load(own, frozen)
  tensors = [t for found in opened.tensors.values() for t in found.values()]
  origin = _origin(source, "DiT", source.folder, tensors)
  origin["scheduler"] = opened.scheduler_text
  sizes = {n: tree.size(p) for n, p in {**loaded, "autoencoder": vae}.items()}

  def write_more():
    kept.write_class_names(directory, opened.class_names)
    importing.save_autoencoder(directory, config, vae, opened.latents)

  importing.write(directory, config, loaded, source.folder, [], origin, write_more)
  listed = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
  print(f"{directory}: {source.name}: {listed} parameters")
  return {"workdir": str(directory), "params": sizes, "step": 0, **origin}


def _loras(args) -> dict[pathlib.Path, float]:
  """The scale of each file of --lora."""
  paths, scales = args.lora, args.lora_scale or [1.0] * len(args.lora)
  if not all(abs(scale) < 1e6 for scale in scales):  # NaN as well
    raise InputError(f"--lora_scale {scales} must be finite numbers, about 1")
  if len(scales) != len(paths) or len(set(paths)) < len(paths):
    raise InputError(
      f"--lora_scale is given {len(scales)} times for {len(set(paths))} files of"
      " --lora; give one for each file"
    )
  return dict(zip(paths, scales, strict=True))


def _autoencoder(args, source: hub.Source, directory: pathlib.Path) -> dict:
  """TAESD: an autoencoder's workdir, its latents as Stable Diffusion wants them."""
  tensors = taesd.open_folder(source.folder)
  block = taesd.block(tensors)
  task = {"name": "autoencoder", "autoencoder": block, "kl_weight": 0.0}
  config = _image_config(task, image_size=512, channels=3)
  config = _overridden(config, args)
  abstract = experiments.make(config, None).abstract_params()["autoencoder"]
  weights = matching.load(taesd.match(tensors, abstract), abstract)
  origin = _origin(source, "TAESD", source.folder, tensors.values())
  size = block["latent_channels"]
  statistics = {  # its latents have mean 0 and variance 1 as they are
    "mean": [0.0] * size,
    "std": [1.0] * size,
    "sha256": tree.sha256(weights),
    "step": 0,
    "weights": "raw",
  }

  def write_more():
    workdir.write_sealed(directory / latents.NAME, statistics)

  params = {"autoencoder": weights}
  importing.write(directory, config, params, source.folder, [], origin, write_more)
  print(f"{directory}: {source.name}: {tree.size(weights):,} parameters")
  return {"workdir": str(directory), "params": tree.size(weights), "step": 0, **origin}


def _image_config(task: dict[str, Any], **data: Any) -> dict[str, Any]:
  """An experiment around imported weights for images, ready for fine-tuning."""
  follows = (task.get("condition") or {}).get("name") == "instruction"
  name, source = ("edits", "edits") if follows else ("images", "image_folder")
  return {
    "seed": 0,
    "task": task,
    "data": {
      "name": name,
      "source": {"name": source, "directory": ""},
      "batch_size": jax.device_count(),
      **data,
    },
    "optimizer": {
      "name": "adamw",
      "learning_rate": {"name": "constant", "peak": 1e-5, "warmup_steps": 100},
    },
    "train": {"name": "train", "num_steps": 1000},
    "evaluators": {},
    "sampling": {
      "name": "image",
      "sampler": {"name": "dpmpp_2m"},
      "num_steps": 25,
      "guidance_scale": 7.5,
    },
    "mesh": {"data": 1, "fsdp": -1, "tensor": 1, "rules": "fsdp"},
  }


def _tokenizer(folder: pathlib.Path, vocab_size: int, is_padded: bool) -> list[str]:
  """Names of the tokenizer's files, held against the model; none is possible."""
  names = [n for n in hub.TOKENIZER_FILES if (folder / n).is_file()]
  if not any(name in names for name in hub.VOCABULARIES):
    return []
  size = tokenizers.load(folder).vocab_size
  if size > vocab_size:
    raise InputError(
      f"{folder}: the tokenizer has {size} ids, config.json vocab_size={vocab_size}"
      " fewer; take the tokenizer that belongs to the model"
    )
  if size < vocab_size and not is_padded:
    raise InputError(
      f"{folder}: config.json vocab_size={vocab_size} is larger than the tokenizer's"
      f" {size}; take the tokenizer that belongs to the model, or say --padded_vocab"
    )
  return names


def _config(
  block: dict[str, Any], directory: pathlib.Path, text: pathlib.Path | None
) -> dict[str, Any]:
  """An experiment around an imported model."""
  source = {"name": "files", "pattern": str(text)} if text else {"name": "pydoc"}
  return {
    "seed": 0,
    "task": {"name": "language_model", "model": block},
    "data": {
      "name": "text",
      "source": source,
      "tokenizer": {"name": "file", "path": str(directory / "tokenizer")},
      "length": min(block["max_length"], 1024),
      "batch_size": 8 * jax.device_count(),
    },
    "optimizer": {
      "name": "adamw",
      "learning_rate": {"name": "cosine", "peak": 1e-5, "warmup_steps": 100},
    },
    "train": {"name": "train", "num_steps": 1000},
    "evaluators": {"validation": {"name": "loss", "every": 500}},
    "sampling": {"name": "text", "temperature": 0.8, "top_p": 0.95},
    # One copy of the weights over all devices, not one on each.
    "mesh": {"data": 1, "fsdp": -1, "tensor": 1, "rules": "fsdp"},
  }


def _origin(
  source: hub.Source,
  architecture: str,
  folder: pathlib.Path,
  tensors: Collection[safetensors.Tensor],
  others: Sequence[pathlib.Path] = (),
) -> dict[str, Any]:
  """Where weights come from, with the SHA-256 of all their files by name in folder.

  Raises:
    InputError: a file is not the one that the hub's cache says it is.
  """
  hashes = {}
  for file in sorted({*others, *(tensor.file for tensor in tensors)}):
    hashes[str(file.relative_to(folder))] = found = files.sha256(file)
    if (wanted := hub.expected_sha256(file)) not in (None, found):
      raise InputError(
        f"{file} is damaged: its SHA-256 is {found}, the hub's {wanted}; delete it and"
        " fetch it again"
      )
  return {
    "from": source.name,
    "revision": source.revision,
    "architecture": architecture,
    "dtypes": sorted({tensor.dtype for tensor in tensors}),
    "sha256": hashes,
  }
