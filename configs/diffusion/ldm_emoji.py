"""Latent diffusion on captioned emoji, trained from scratch on two CPU cores.

gen-jax train  --config configs/vae/emoji.py --workdir runs/vae ...
gen-jax encode --workdir runs/vae --to runs/codes
gen-jax train  --config configs/diffusion/ldm_emoji.py --workdir runs/ldm
  --config.task.codec.workdir=runs/vae --config.data.source.directory=runs/codes
gen-jax sample --workdir runs/ldm --prompt "red apple"

`:diffusers` has the parts that diffusers knows, and can be exported; not yet run:

gen-jax train  --config configs/diffusion/ldm_emoji.py:diffusers --workdir runs/ldm ...
gen-jax export --workdir runs/ldm --to exported
"""

import ml_collections

from configs import common
from configs.vae import emoji

VARIANTS = ("own", "diffusers")
ATTENTION = {
  "name": "transformer",
  "mlp": {"name": "gated_mlp", "activation": "gelu_exact"},
  "use_bias": False,
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """`:diffusers` can be exported; `:smoke` shrinks it, on the pixels of digits."""
  variant, smoke = common.parse_arg(arg, VARIANTS)
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
  if variant == "diffusers":
    with config.unlocked():
      config.task.network.attention = ATTENTION
      config.task.schedule = {"name": "scaled_linear"}
      config.task.conditioning.text_encoder.update(
        {"is_causal": True, "activation": "quick_gelu"}
      )
      config.sampling.grid = {"name": "trailing"}
  return common.smoke(config) if smoke else config
