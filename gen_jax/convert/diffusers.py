"""Reads and writes Stable Diffusion as a diffusers folder; reads its single file."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from gen_jax import build, safetensors, tree
from gen_jax.convert import diffusers_configs as configs
from gen_jax.convert import diffusers_schedulers as schedulers
from gen_jax.convert import foreign, keys, matching
from gen_jax.convert import stable_diffusion as sd
from gen_jax.system import files
from gen_jax.tasks import diffusion
from gen_jax.types import InputError, unsupported

Block = dict[str, Any]
INDEX = "model_index.json"
_MAX_SIDE = 1024  # of latents: images of 8192
UNET, VAE, TEXT, SCHEDULER = (
  "unet/config.json",
  "vae/config.json",
  "text_encoder/config.json",
  schedulers.PATH,
)
PARTS = {"unet": "unet", "autoencoder": "vae", "text_encoder": "text_encoder"}
FOLDERS = {**PARTS, "transformer": "transformer"}
STEMS = {
  "unet": ("diffusion_pytorch_model", "diffusion_pytorch_model.fp16"),
  "autoencoder": ("diffusion_pytorch_model", "diffusion_pytorch_model.fp16"),
  "text_encoder": ("model", "model.fp16"),
}
# {pipeline: the task's keys for its UNet's extra input channels}.
PIPELINES = {
  "StableDiffusionPipeline": {"condition": None},
  "StableDiffusionInpaintPipeline": {"condition": {"name": "inpainting"}},
  "StableDiffusionInstructPix2PixPipeline": {
    "condition": {"name": "instruction"},
    "condition_drop_prob": 0.1,
  },
}


def _pipeline(outputs: int, extra: int) -> str:
  """The pipeline of a UNet with `extra` more input than output channels."""
  text, inpainting, instruction = PIPELINES
  return {0: text, outputs: instruction, outputs + 1: inpainting}[extra]


@dataclasses.dataclass(frozen=True)
class DiffusersModel:
  """The contents of a folder or file.

  Attributes:
    task: the task block, its codec's autoencoder included.
    is_linear: see `stable_diffusion.Model`.
    latents: mean and std of each latent channel.
    tensors: of each of the three networks.
    column: `stable_diffusion.FOLDER` or FILE.
    side: of the images, in pixels.
    sampler, grid: blocks of sampling, from the scheduler.
    scheduler: scheduler_config.json; None for a file.
  """

  task: Block
  is_linear: bool
  latents: Block
  tensors: Mapping[str, Mapping[str, safetensors.Tensor]]
  column: int
  side: int
  sampler: Block
  grid: Block
  scheduler: str | None = None

  def models(self) -> dict[str, sd.Model]:
    """The three networks by name."""
    unet = build.build("network", self.task["network"])
    found = {"unet": sd.Model("unet", unet.config, self.is_linear)}
    for name, part in (("autoencoder", "codec"), ("text_encoder", "conditioning")):
      network = build.build(name, self.task[part][name])
      found[name] = sd.Model(name, network.config)
    return found


def is_image_model(path: pathlib.Path) -> bool:
  """Whether a path is Stable Diffusion: its folder, or its single file."""
  return (path / INDEX).is_file() or (path.is_file() and path.suffix == ".safetensors")


def _read(
  read: Callable[[str], Any], scheduler: schedulers.Scheduler
) -> tuple[Block, bool, Block]:
  """Task block, `is_linear` and latent statistics, from a folder's configs."""
  unet_block, is_linear = configs.read_unet(read(UNET))
  vae_block, latents = configs.read_autoencoder(read(VAE))
  text_block = configs.read_text_encoder(read(TEXT))
  context = read(UNET)["cross_attention_dim"]
  if context != text_block["width"]:
    raise InputError(
      f"{UNET} cross_attention_dim={context} contradicts {TEXT}"
      f" hidden_size={text_block['width']}"
    )
  task = {
    "name": "diffusion",
    "network": unet_block,
    "conditioning": {"name": "text", "text_encoder": text_block},
    "schedule": scheduler.schedule,
    "target": scheduler.target,
    "weighting": {"name": "unit"},
    "time_sampler": {"name": "uniform", "t_min": 0.001, "t_max": 1.0},
    "codec": {"name": "latent", "autoencoder": vae_block, "workdir": None},
    "drop_prob": 0.1,
    **PIPELINES[_pipeline(unet_block["image_channels"], unet_block["extra_channels"])],
  }
  return task, is_linear, latents


def open_folder(folder: pathlib.Path) -> DiffusersModel:
  """Reads the configs and the headers of the weights of a diffusers folder.

  Raises:
    InputError: anything unknown, missing or damaged.
  """
  index = files.read_json(folder / INDEX)
  name = index.get("_class_name")
  if not isinstance(name, str) or name not in PIPELINES:
    raise unsupported("pipeline (of model_index.json)", name, PIPELINES)

  def read(path):
    return files.read_json(folder / path)

  text = files.read(folder / SCHEDULER)
  named = index.get("scheduler") or [None, None]
  config = files.parse_json(text, str(folder / SCHEDULER))
  if not isinstance(config, dict) or not isinstance(named, list):
    raise InputError(f"{folder}: {SCHEDULER} or the scheduler of {INDEX} is damaged")
  scheduler = schedulers.read(config, named[-1])
  if config.get("_class_name") != (named[-1] or config.get("_class_name")):
    text = json.dumps({**config, "_class_name": named[-1]}, indent=2) + "\n"
  task, is_linear, latents = _read(read, scheduler)
  tensors = {
    name: sd.open_weights(folder / part, STEMS[name]) for name, part in PARTS.items()
  }
  for name, block in (
    ("unet", task["network"]),
    ("autoencoder", task["codec"]["autoencoder"]),
  ):
    depth = len(block["multipliers"]) * block["num_blocks"]
    matching.check_depth(depth, tensors[name], f"blocks of the {name}")
  depth = task["conditioning"]["text_encoder"]["num_layers"]
  matching.check_depth(depth, tensors["text_encoder"], "the text encoder's layers")
  side = _side(read(UNET).get("sample_size") or 64)
  factor = 2 ** (len(task["codec"]["autoencoder"]["multipliers"]) - 1)
  drawn = scheduler.sampler, scheduler.grid
  return DiffusersModel(
    task, is_linear, latents, tensors, sd.FOLDER, side * factor, *drawn, text
  )


def _side(size: Any) -> int:
  """Side of the latents that a UNet was trained on; it may be given twice."""
  sides = size if isinstance(size, list) and len(size) == 2 else [size, size]
  side = keys.typed(sides[0], int, f"{UNET} sample_size")
  if sides[1] != side or side > _MAX_SIDE:
    raise InputError(
      f"{UNET} sample_size={size!r:.60} must be a square, of at most {_MAX_SIDE}"
    )
  return side


# Stable Diffusion 1's configs, which a single file does not hold.
V1 = {
  UNET: {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
  },
  VAE: {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "scaling_factor": 0.18215,
  },
  TEXT: {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
  },
  SCHEDULER: {
    "_class_name": "PNDMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "skip_prk_steps": True,
    "steps_offset": 1,
  },
}
_SCHEDULE_BUFFERS = (
  "betas",
  "alphas_cumprod",
  "sqrt_",
  "log_one_minus",
  "posterior_",
  "model_ema.",
  "logvar",
)


def read_v1(inputs: int = 4) -> tuple[Block, bool, Block]:
  """`_read` of Stable Diffusion 1; 9 inputs: inpainting, 8: instructions."""
  described = {**V1, UNET: {**V1[UNET], "in_channels": inputs}}
  return _read(described.__getitem__, schedulers.read(V1[SCHEDULER]))


def open_file(file: pathlib.Path) -> DiffusersModel:
  """Reads the header of a Stable Diffusion 1 checkpoint in its original layout.

  Raises:
    InputError: tensors of other networks.
  """
  tensors = {
    name.removeprefix("state_dict."): tensor
    for name, tensor in safetensors.read_header(file).items()
  }
  grouped, strange = {name: {} for name in PARTS}, []
  for name, tensor in tensors.items():
    homes = [
      part for part, prefixes in sd.PREFIXES.items() if name.startswith(prefixes[1])
    ]
    if homes:
      grouped[homes[0]][name] = tensor
    elif not name.startswith(_SCHEDULE_BUFFERS):
      strange.append(name)
  if strange or not all(grouped.values()):
    lacks = [name for name, found in grouped.items() if not found]
    what = f"lacks {', '.join(lacks)}" if lacks else f"has {', '.join(strange[:4])}"
    known = foreign.kind(tensors)
    raise InputError(
      f"{file} is {known or f'no Stable Diffusion 1 checkpoint: it {what}'};"
      " supported: Stable Diffusion 1 in a single file, 1 and 2 in a diffusers folder"
    )
  first = grouped["unet"].get("model.diffusion_model.input_blocks.0.0.weight")
  inputs = first.shape[1] if first else 4
  task, is_linear, latents = read_v1(inputs)
  drawn = schedulers.read(V1[SCHEDULER])[2:]
  return DiffusersModel(task, is_linear, latents, grouped, sd.FILE, 512, *drawn)


def describe(
  task: diffusion.Diffusion,
  vae: Any,
  latents: Block,
  image_size: int,
  is_linear: bool,
  scheduler: schedulers.Written,
) -> dict[str, Block]:
  """{path in the folder: content} of all configs.

  Args:
    vae: config of the autoencoder.
    latents: mean and std of each latent channel.
    image_size: of the images that the model was trained on.
    is_linear: see `stable_diffusion.Model`.
    scheduler: of `diffusers_schedulers.write`.

  Raises:
    InputError: a model that the format cannot express.
  """
  vae_block = configs.write_autoencoder(vae, **latents, side=image_size)
  unet, encoder = task.network.config, task.conditioning.text_encoder.config
  side = image_size // vae.factor
  return {
    UNET: configs.write_unet(unet, encoder.width, is_linear, side),
    VAE: vae_block,
    TEXT: configs.write_text_encoder(encoder),
    SCHEDULER: scheduler.text,
    INDEX: {
      "_class_name": _pipeline(unet.image_channels, unet.extra_channels),
      "unet": ["diffusers", "UNet2DConditionModel"],
      "vae": ["diffusers", "AutoencoderKL"],
      "scheduler": ["diffusers", scheduler.name],
      "text_encoder": ["transformers", "CLIPTextModel"],
      "tokenizer": ["transformers", "CLIPTokenizer"],
      "safety_checker": [None, None],
      "feature_extractor": [None, None],
      "image_encoder": [None, None],
      "requires_safety_checker": False,
    },
  }


def check_v1(described: Mapping[str, Block]) -> None:
  """Checks that a model is Stable Diffusion 1: a single file is read as that.

  Raises:
    InputError: names the differences.
  """
  config = files.parse_json(described[SCHEDULER], SCHEDULER)
  own = _read(described.__getitem__, schedulers.read(config))
  wanted = read_v1(described[UNET]["in_channels"])
  ours, theirs = (tree.flatten(dict(enumerate(found))) for found in (own, wanted))
  differ = {
    ".".join(name for name in path.split("/") if not name.isdecimal())
    for path in ours.keys() | theirs.keys()
    if ours.get(path) != theirs.get(path)
  }
  if differ:
    raise InputError(
      "a single file is read as Stable Diffusion 1, from which this model differs in"
      f" {', '.join(sorted(differ)[:6])}; export a folder"
    )


def write_folder(
  folder: pathlib.Path,
  described: Mapping[str, Block | str],
  tensors: Mapping[str, Mapping[str, safetensors.LazyTensor]],
  dtype: str,
) -> None:
  """Writes what `open_folder` reads into an existing folder.

  Args:
    described: of `describe`.
    tensors: of each network, a key of FOLDERS, by their names in a folder.
    dtype: see `safetensors.write_folder`.
  """
  for name, config in described.items():
    (folder / name).parent.mkdir(exist_ok=True)
    is_text = isinstance(config, str)  # unchanged since import
    text = config if is_text else json.dumps(config, indent=2, sort_keys=True) + "\n"
    files.write(folder / name, text)
  for name, own in tensors.items():
    home, stem = folder / FOLDERS[name], STEMS.get(name, STEMS["unet"])[0]
    safetensors.write_folder(home, own, dtype, stem=stem)
