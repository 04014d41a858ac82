"""A text-conditioned UNet on drawn scenes of shapes, scored exactly.

Captions like "a small red circle on the left, a large blue square at the top"; nothing
to download. Not yet trained to the end; see experiments/shapes/README.md.

gen-jax train  --config configs/diffusion/shapes.py --workdir runs/shapes
gen-jax sample --workdir runs/shapes --num 8 --prompt "a large red triangle on the left"
"""

import ml_collections

from configs import common


def task(**changes) -> dict:
  """The model of both shapes and their edits."""
  return {
    "name": "diffusion",
    "unet": {
      "name": "unet",
      "image_channels": 3,
      "width": 24,
      "multipliers": (1, 2, 4),
      "num_blocks": 1,
      "attention_levels": (1, 2),
      "num_heads": 4,
      "num_groups": 8,
      "dropout": 0.0,
      "dtype": "float32",
    },
    "text_encoder": {
      "name": "text_encoder",
      "vocab_size": 512,
      "max_length": 40,
      "num_layers": 2,
      "width": 96,
      "num_heads": 4,
      "dropout": 0.0,
      "dtype": "float32",
    },
    "schedule": {"name": "cosine", "offset": 0.008},
    "target": {"name": "v"},
    "weighting": {"name": "unit"},
    "time_sampler": {"name": "stratified", "t_min": 0.001, "t_max": 1.0},
    "codec": {"name": "identity"},
    "caption_drop_prob": 0.1,
    **changes,
  }


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """`:smoke` shrinks it to seconds."""
  _, smoke = common.parse_arg(arg)
  config = common.pictures(
    task(),
    data={
      "name": "images",
      "source": {"name": "shapes", "num": 20_000, "num_validation": 500},
      "tokenizer": {"name": "bpe", "vocab_size": 512},
      "image_size": 24,
      "channels": 3,
      "caption_length": 40,
      "batch_size": 32,
      "flip": False,
    },
    optimizer={"learning_rate": {"peak": 2e-3, "warmup_steps": 100}},
    train={"num_steps": 3000, "save_every": 500, "ema_decay": 0.998},
  )
  config.evaluators["reading"] = {"name": "prompt_accuracy", "every": 0, "num": 200}
  config.sampling.num_steps = 20
  return common.smoke(config) if smoke else config
