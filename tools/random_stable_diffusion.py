"""Writes a Stable Diffusion with random weights, at full size, as diffusers keeps one.

    python tools/random_stable_diffusion.py TOKENIZER_FOLDER TARGET [v1] [F32]

The last two: any variant of configs/diffusion/stable_diffusion.py, and F32 or BF16.
To try import, sampling and export where the released weights are not at hand. Weights
are N(0, 1 / fan_in), one tensor in memory at a time. TOKENIZER_FOLDER has CLIP's
vocab.json and merges.txt, or any smaller vocabulary.
"""

import pathlib
import shutil
import sys

import numpy as np

from gen_jax import build, safetensors
from gen_jax import experiment as experiments
from gen_jax.build import config_files
from gen_jax.convert import diffusers, stable_diffusion

STD = 1 / 0.18215  # of the latents of the released autoencoder


def draw(name: str, shape: tuple[int, ...], seed: int) -> safetensors.LazyTensor:
  """A kernel, or the scale or bias of a norm."""

  def make():
    if len(shape) == 1:
      is_scale = name.endswith("weight")
      return np.full(shape, 1.0 if is_scale else 0.0, np.float32)
    generator = np.random.default_rng(seed)
    fan_in = int(np.prod(shape[1:]))
    return generator.standard_normal(shape, np.float32) * np.float32(fan_in**-0.5)

  return safetensors.LazyTensor(shape, make)


def main() -> None:
  """Configs, three networks, and the tokenizer."""
  tokenizer, target = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
  variant, dtype = [*sys.argv[3:], "v1", "F32"][:2]
  config = config_files.load(f"configs/diffusion/stable_diffusion.py:{variant}")
  config["data"]["batch_size"] = 1
  made = experiments.make(config, None)
  is_linear = variant.startswith("v2")
  vae = build.build("autoencoder", config["task"]["codec"]["autoencoder"]).config
  latents = {"mean": [0.0] * vae.latent_channels, "std": [STD] * vae.latent_channels}
  size = config["data"]["image_size"]
  described = diffusers.describe(made.task, vae, latents, size, is_linear)
  abstract = {**made.abstract_params(), "autoencoder": made.frozen["autoencoder"]}
  models = {
    "unet": (made.task.network.config, is_linear),
    "autoencoder": (vae,),
    "text_encoder": (made.task.conditioning.text_encoder.config,),
  }
  plans, seed = {}, 0
  for network, parts in models.items():
    model = stable_diffusion.Model(network, *parts)
    rows = model.plan(abstract[network], stable_diffusion.FOLDER)
    plans[network] = {}
    for name, (_, shape) in rows.items():
      plans[network][name] = draw(name, shape, seed := seed + 1)
  target.mkdir(parents=True)
  shutil.copytree(tokenizer, target / "tokenizer")
  diffusers.write_folder(target, described, plans, dtype)


if __name__ == "__main__":
  main()
