"""What a folder of diffusers holds, or Stable Diffusion's single file."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from gen_jax import build
from gen_jax.convert import diffusers_configs as configs
from gen_jax.convert import safetensors
from gen_jax.convert import stable_diffusion as sd
from gen_jax.types import InputError, unknown

Block = dict[str, Any]
PARTS = {"unet": "unet", "autoencoder": "vae", "text_encoder": "text_encoder"}
STEMS = {
  "unet": ("diffusion_pytorch_model", "diffusion_pytorch_model.fp16"),
  "autoencoder": ("diffusion_pytorch_model", "diffusion_pytorch_model.fp16"),
  "text_encoder": ("model", "model.fp16"),
}
PIPELINES = (
  "StableDiffusionPipeline",
  "StableDiffusionInpaintPipeline",
  "StableDiffusionInstructPix2PixPipeline",
)


@dataclasses.dataclass(frozen=True)
class Opened:
  """What a folder or file holds.

  Attributes:
    task: the task block, its codec's autoencoder included.
    is_linear: see `stable_diffusion.Model`.
    latents: mean and std of each latent channel.
    tensors: of each of the three networks.
    column: `stable_diffusion.FOLDER` or FILE.
    side: of the pictures.
  """

  task: Block
  is_linear: bool
  latents: Block
  tensors: Mapping[str, Mapping[str, safetensors.Tensor]]
  column: int
  side: int

  def models(self) -> dict[str, sd.Model]:
    """The three networks by name."""
    make = lambda kind, block: build.build(kind, block).config  # noqa: E731
    vae = self.task["codec"]["autoencoder"]
    encoder = self.task["text_encoder"]
    return {
      "unet": sd.Model("unet", make("unet", self.task["unet"]), self.is_linear),
      "autoencoder": sd.Model("autoencoder", make("autoencoder", vae)),
      "text_encoder": sd.Model("text_encoder", make("text_encoder", encoder)),
    }


def is_pictures(path: pathlib.Path) -> bool:
  """Whether a path is Stable Diffusion: its folder, or its single file."""
  return (path / "model_index.json").is_file() or (
    path.is_file() and path.suffix == ".safetensors"
  )


def _task(unet_block, vae_block, text_block, schedule_block, target) -> Block:
  return {
    "name": "diffusion",
    "unet": unet_block,
    "text_encoder": text_block,
    "schedule": schedule_block,
    "target": target,
    "weighting": {"name": "unit"},
    "time_sampler": {"name": "uniform", "t_min": 0.001, "t_max": 1.0},
    "codec": {"name": "latent", "autoencoder": vae_block, "workdir": None},
    "caption_drop_prob": 0.1,
  }


def open_folder(folder: pathlib.Path) -> Opened:
  """Reads the configs and the headers of the weights of a diffusers folder.

  Raises:
    InputError: anything that is not understood, missing or damaged.
  """
  index = safetensors.read_json(folder / "model_index.json")
  name = index.get("_class_name") if isinstance(index, dict) else None
  if name not in PIPELINES:
    raise unknown("pipeline (of model_index.json)", name, PIPELINES)
  read = lambda part, file="config.json": safetensors.read_json(folder / part / file)  # noqa: E731
  unet_block, is_linear = configs.read_unet(read("unet"))
  vae_block, latents = configs.read_autoencoder(read("vae"))
  text_block = configs.read_text_encoder(read("text_encoder"))
  context = read("unet")["cross_attention_dim"]
  if context != text_block["width"]:
    raise InputError(
      f"unet/config.json cross_attention_dim={context} contradicts"
      f" text_encoder/config.json hidden_size={text_block['width']}"
    )
  blocks = configs.read_scheduler(read("scheduler", "scheduler_config.json"))
  tensors = {
    name: sd.open_weights(folder / part, STEMS[name]) for name, part in PARTS.items()
  }
  side = read("unet").get("sample_size") or 64
  return Opened(
    _task(unet_block, vae_block, text_block, *blocks),
    is_linear,
    latents,
    tensors,
    sd.FOLDER,
    side * 2 ** (len(vae_block["multipliers"]) - 1),
  )


# What a single file cannot say: Stable Diffusion 1, by its own configuration.
V1_UNET = {
  "in_channels": 4,
  "out_channels": 4,
  "block_out_channels": [320, 640, 1280, 1280],
  "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
  "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
  "layers_per_block": 2,
  "attention_head_dim": 8,
  "cross_attention_dim": 768,
}
V1_VAE = {
  "block_out_channels": [128, 256, 512, 512],
  "down_block_types": ["DownEncoderBlock2D"] * 4,
  "up_block_types": ["UpDecoderBlock2D"] * 4,
  "layers_per_block": 2,
  "scaling_factor": 0.18215,
}
V1_TEXT = {
  "vocab_size": 49408,
  "hidden_size": 768,
  "intermediate_size": 3072,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "max_position_embeddings": 77,
}
V1_SCHEDULER = {
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "beta_end": 0.012,
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


def v1_task(inputs: int = 4) -> Block:
  """The task block of Stable Diffusion 1; 9 channels of input are its inpainting."""
  return _task(
    configs.read_unet({**V1_UNET, "in_channels": inputs})[0],
    configs.read_autoencoder(V1_VAE)[0],
    configs.read_text_encoder(V1_TEXT),
    *configs.read_scheduler(V1_SCHEDULER),
  )


def open_file(file: pathlib.Path) -> Opened:
  """Reads the header of a Stable Diffusion 1 checkpoint in its original layout.

  Raises:
    InputError: tensors that are not of its three networks.
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
    raise InputError(
      f"{file} is no Stable Diffusion 1 checkpoint: it {what}; give a diffusers folder"
    )
  first = grouped["unet"].get("model.diffusion_model.input_blocks.0.0.weight")
  inputs = first.shape[1] if first else 4
  latents = configs.read_autoencoder(V1_VAE)[1]
  return Opened(v1_task(inputs), False, latents, grouped, sd.FILE, 512)


def index() -> Block:
  """model_index.json."""
  return {
    "_class_name": PIPELINES[0],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
  }
