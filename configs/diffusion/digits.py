"""A small text-conditioned UNet on 1,797 handwritten digits with captions.

The pictures ship with scikit-learn, so this runs anywhere, offline. It is the other
half of `make quickstart`.
"""

import ml_collections

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """`:smoke` shrinks it to seconds."""
  _, smoke = common.parse_arg(arg)
  config = ml_collections.ConfigDict(
    {
      "seed": 0,
      "task": {
        "name": "diffusion",
        "unet": {
          "name": "unet",
          "image_channels": 1,
          "width": 48,
          "multipliers": (1, 2),
          "num_blocks": 1,
          "attention_levels": (),
          "num_heads": 4,
          "num_groups": 8,
          "dropout": 0.0,
          "dtype": "float32",
        },
        "text_encoder": {
          "name": "text_encoder",
          "vocab_size": 512,
          "max_length": 12,
          "num_layers": 1,
          "width": 64,
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
      },
      "data": {
        "name": "images",
        "source": {"name": "digits", "data_dir": None},
        "tokenizer": {"name": "bpe", "vocab_size": 512},
        "image_size": 8,
        "channels": 1,
        "caption_length": 12,
        "batch_size": 64,
        "flip": False,
      },
      "optimizer": {
        "name": "adamw",
        "learning_rate": {
          "name": "cosine",
          "peak": 2e-3,
          "warmup_steps": 50,
          "final_fraction": 0.05,
        },
        "b1": 0.9,
        "b2": 0.99,
        "eps": 1e-8,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
      },
      "train": {
        "num_steps": 300,
        "num_epochs": None,
        "patience": None,
        "monitor": "validation/loss",
        "log_every": 20,
        "save_every": 150,
        "keep": 2,
        "num_microbatches": 1,
        "ema_decay": 0.995,
        "health_check": True,
      },
      "evaluators": {
        "validation": {"name": "loss", "every": 150, "max_batches": None},
        "reading": {"name": "prompt_accuracy", "every": 0, "num": 200},
      },
      "sampling": {
        "name": "image",
        "sampler": {"name": "dpmpp_2m"},
        "grid": {"name": "uniform"},
        "num_steps": 20,
        "guidance_scale": 2.0,
        "guidance_interval": (0.0, 1.0),
        "guidance_rescale": 0.0,
      },
      "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "rules": "fsdp"},
    }
  )
  return common.smoke(config) if smoke else config
