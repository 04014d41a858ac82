"""Latent diffusion on captioned emoji, trained from scratch on two CPU cores.

gen-jax train  --config configs/vae/emoji.py --workdir runs/vae ...
gen-jax encode --workdir runs/vae --to runs/codes
gen-jax train  --config configs/diffusion/ldm_emoji.py --workdir runs/ldm
  --config.task.codec.workdir=runs/vae --config.data.source.directory=runs/codes
gen-jax sample --workdir runs/ldm --prompt "red apple"
"""

import ml_collections

from configs import common
from configs.vae import emoji


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """`:smoke` shrinks it to seconds, on the pixels of digits."""
  _, smoke = common.parse_arg(arg)
  config = common.images(
    common.diffusion(
      common.unet(
        image_channels=16,
        width=96,
        multipliers=(1, 2),
        attention_levels=(0, 1),
        num_groups=16,
      ),
      common.text(vocab_size=2048, max_length=24, num_layers=2, width=128),
      codec={"name": "latent", "autoencoder": dict(emoji.AUTOENCODER)},
    ),
    data={
      "name": "latents",
      "source": {"name": "latents", "directory": ""},
      "tokenizer": {"name": "bpe", "vocab_size": 2048},
      "image_size": 64,
      "channels": 3,
      "latent_size": 8,
      "latent_channels": 16,
      "caption_length": 24,
      "batch_size": 64,
    },
    optimizer={"learning_rate": {"peak": 1e-3, "warmup_steps": 100}, "b2": 0.99},
    train={"num_steps": 3400, "ema_decay": 0.998},
  )
  config.evaluators.validation.every = 1000
  config.sampling.guidance_scale = 2.0
  return common.smoke(config) if smoke else config
