"""Stable Diffusion 1 and 2 at full size, for training from scratch and for planning.

    variant         parameters: UNet   autoencoder   text encoder
    v1              859,520,964        83,653,863    123,060,480
    v1-inpainting   859,535,364        (9 channels into the UNet)
    v2-base         865,910,724        83,653,863    340,387,840    512 pixels, eps
    v2              865,910,724        83,653,863    340,387,840    768 pixels, v

Rombach et al. 2022 (arXiv:2112.10752). The recipe of the released v1: AdamW at 1e-4
after 10,000 steps of warm-up, batches of 2,048, a tenth of the captions dropped. For
released weights see `gen-jax import`. Not yet run at full size.
"""

import ml_collections

from configs import common

VARIANTS = ("v1", "v1-inpainting", "v2-base", "v2")
AUTOENCODER = {
  "name": "autoencoder",
  "image_channels": 3,
  "latent_channels": 4,
  "width": 128,
  "multipliers": (1, 2, 4, 4),
  "num_blocks": 2,
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """`:v1`, `:v2`, ...; `:smoke` shrinks it to seconds, on the pixels of digits."""
  variant, smoke = common.parse_arg(arg, VARIANTS)
  is_first = variant.startswith("v1")
  text = common.text(
    vocab_size=49408,
    max_length=77,
    num_layers=12 if is_first else 23,
    width=768 if is_first else 1024,
    num_heads=12 if is_first else 16,
    activation="quick_gelu" if is_first else "gelu_exact",
    is_causal=True,
  )
  unet = {
    "image_channels": 4,
    "extra_channels": 5 if variant == "v1-inpainting" else 0,
    "width": 320,
    "multipliers": (1, 2, 4, 4),
    "num_blocks": 2,
    "attention_levels": (0, 1, 2),
    "num_heads": 8 if is_first else None,
    "head_dim": None if is_first else 64,
    "attention": {
      "name": "transformer",
      "mlp": {"name": "gated_mlp", "activation": "gelu_exact"},
      "use_bias": False,
    },
    "num_groups": 32,
    "timestep_offset": -1.0,
  }
  config = common.images(
    common.diffusion(
      common.unet(**unet),
      text,
      schedule={"name": "scaled_linear"},
      target={"name": "v" if variant == "v2" else "eps"},
      time_sampler={"name": "uniform"},
      codec={"name": "latent", "autoencoder": dict(AUTOENCODER)},
      condition={"name": "inpainting"} if unet["extra_channels"] else None,
    ),
    data={
      "name": "images",
      "source": {"name": "image_folder", "directory": ""},
      "tokenizer": {"name": "file", "path": ""},
      "image_size": 768 if variant == "v2" else 512,
      "channels": 3,
      "caption_length": 77,
      "batch_size": 2048,
    },
    optimizer={
      "learning_rate": {"name": "constant", "peak": 1e-4, "warmup_steps": 10_000},
      "b2": 0.999,
    },
    train={"num_steps": 500_000, "ema_decay": 0.9999, "save_every": 5000},
  )
  del config.optimizer.learning_rate["final_fraction"]
  config.sampling.num_steps = 50
  config.sampling.guidance_scale = 7.5
  if smoke:
    config.task.network.update({"num_heads": 2, "head_dim": None, "extra_channels": 0})
    config.task.condition = None
    config.task.conditioning.text_encoder.vocab_size = 512
    config.data.tokenizer = {"name": "bpe", "vocab_size": 512}
    config.data.caption_length = 12
  return common.smoke(config) if smoke else config
