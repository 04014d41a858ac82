"""Identifies a file of weights by the names of its tensors.

Only for error messages about files that cannot be imported.

Source: files as published; kohya's, diffusers' and ComfyUI's readers do the same.
"""

import re
from collections.abc import Iterable

# The first pattern that matches the start of any tensor's name decides.
_UNET = r"(model\.diffusion_model\.)?"
_KINDS = {
  r"lora_(unet|te\d?|transformer)_|.*(\.lora_[AB]\.|\.lora\.(up|down)\.|"
  r"\.lora_linear_layer\.|_lora\.(up|down)\.)": "a LoRA file; give its"
  " model's workdir with --base, or it with --lora",
  r"control_model\.|controlnet_|input_hint_block\.": "a ControlNet",
  r"image_proj\.|ip_adapter\.": "an IP-Adapter",
  r"emb_params|string_to_param": "a textual inversion",
  r"conditioner\.embedders\.0\.transformer\.": "Stable Diffusion XL",
  r"conditioner\.embedders\.0\.model\.": "the refiner of Stable Diffusion XL",
  r"conditioner\.embedders\.0\.open_clip\.|.*\.time_stack\.": "Stable Video Diffusion",
  rf"{_UNET}label_emb\.": "the UNet of Stable Diffusion XL",
  rf"{_UNET}joint_blocks\.": "Stable Diffusion 3",
  rf"{_UNET}(double_blocks|single_transformer_blocks)\.": "FLUX",
  r"cond_stage_model\.model\.": "Stable Diffusion 2 in a single file",
  r"(en|de)coder\.layers\.\d+\.": "AutoencoderTiny of diffusers",
  r"\d+\.(conv\.\d+\.)?weight": "one half of TAESD; give the folder of both",
  r"(model|transformer|encoder)\.(layers|h|block)\.\d+\.": "a language model alone;"
  " give its folder, with config.json and the tokenizer",
}
# Parts of Stable Diffusion; a complete file has all of them.
_PARTS = {
  r"(first_stage_model\.)?(en|de)coder\.": "an autoencoder",
  rf"{_UNET}(down_blocks|input_blocks)\.": "a UNet",
  r"(cond_stage_model\.transformer\.)?text_model\.": "a text encoder",
}


_LORA_BASES = {
  r"lora_te2_|text_encoder_2\.": "Stable Diffusion XL",
  r"(lora_)?transformer[._]|lora_unet_(double|single|joint)_blocks": "FLUX or Stable"
  " Diffusion 3",
  r"(base_model\.model\.)?(model|transformer)\.(layers|h)\.": "a language model",
}


def lora_base(names: Iterable[str]) -> str:
  """' (it is for ...)' if a LoRA file's names are of another base model; else ''."""
  names = list(names)
  for pattern, what in _LORA_BASES.items():
    if any(re.match(pattern, name) for name in names):
      return f" (it is for {what})"
  return ""


def kind(names: Iterable[str]) -> str | None:
  """What a file with tensors of these names is; None if unknown.

  >>> kind(["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"])
  'Stable Diffusion 3'
  """
  names = list(names)
  for pattern, what in _KINDS.items():
    if any(re.match(pattern, name) for name in names):
      return what
  parts = [w for p, w in _PARTS.items() if any(re.match(p, name) for name in names)]
  return f"{parts[0]} alone" if len(parts) == 1 else None
