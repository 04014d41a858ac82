"""Writes tests/golden_pictures/single_file.json with diffusers' own converters.

Each tensor of the tiny v1 pipeline, named as in a single file, is marked by a number;
what the converters call it in a folder is what it must be called there. Runs where
both this project and diffusers are installed:

    python tools/check_single_file.py tests/golden_pictures
"""

import json
import pathlib
import sys

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils

from gen_jax.convert import diffusers as ours
from gen_jax.convert import stable_diffusion
from tests.convert import test_stable_diffusion as tiny


def main() -> None:
  """One JSON: {network: {name in the file: name in the folder}}."""
  target = pathlib.Path(sys.argv[1])
  opened = ours.open_folder(target / "v1")
  abstract = tiny.abstract(opened)
  marked, names = {}, []
  for part, model in opened.models().items():
    for name, (_, shape) in model.plan(abstract[part], stable_diffusion.FILE).items():
      marked[name] = torch.full(shape, float(len(names)))
      names.append((part, name))
  unet = UNet2DConditionModel.load_config(target / "v1/unet")
  vae = AutoencoderKL.load_config(target / "v1/vae")
  found = {
    "unet": single_file_utils.convert_ldm_unet_checkpoint(dict(marked), unet),
    "autoencoder": single_file_utils.convert_ldm_vae_checkpoint(dict(marked), vae),
    "text_encoder": single_file_utils.convert_ldm_clip_checkpoint(dict(marked)),
  }
  pairs = {part: {} for part in found}
  for part, tensors in found.items():
    for name, tensor in tensors.items():
      home, original = names[int(tensor.flatten()[0])]
      assert home == part
      pairs[part][original] = name
  text = json.dumps(pairs, indent=0, sort_keys=True) + "\n"
  (target / "single_file.json").write_text(text)


if __name__ == "__main__":
  main()
