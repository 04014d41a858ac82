"""A small decoder-only transformer on the Python language reference.

The text is what every Python ships (pydoc_data.topics), so this runs anywhere, offline.
It is half of `make quickstart`.
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
        "name": "language_model",
        "model": {
          "name": "transformer",
          "vocab_size": 1024,
          "max_length": 256,
          "num_layers": 4,
          "width": 192,
          "num_heads": 6,
          "num_kv_heads": None,
          "mlp_width": None,
          "norm": {"name": "layer_norm", "eps": 1e-5, "use_bias": True},
          "mlp": {"name": "mlp", "activation": "gelu"},
          "position": None,
          "rotary": {"name": "rotary", "base": 1e4},
          "use_bias": False,
          "tied_head": True,
          "dropout": 0.1,
          "dtype": "float32",
        },
      },
      "data": {
        "name": "text",
        "source": {"name": "pydoc"},
        "tokenizer": {"name": "bpe", "vocab_size": 1024},
        "length": 128,
        "batch_size": 16,
      },
      "optimizer": {
        "name": "adamw",
        "learning_rate": {
          "name": "cosine",
          "peak": 3e-3,
          "warmup_steps": 50,
          "final_fraction": 0.05,
        },
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
      },
      "train": {
        "num_steps": 160,
        "num_epochs": None,
        "patience": None,
        "monitor": "validation/loss",
        "log_every": 20,
        "save_every": 80,
        "keep": 2,
        "num_microbatches": 1,
        "ema_decay": None,
      },
      "evaluators": {
        "validation": {"name": "loss", "every": 80, "max_batches": None},
        "gzip": {"name": "gzip", "every": 0},
      },
      "sampling": {
        "name": "text",
        "max_tokens": 120,
        "temperature": 0.8,
        "top_k": None,
        "top_p": 0.95,
        "min_p": 0.0,
      },
      "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "rules": "fsdp"},
    }
  )
  return common.smoke(config) if smoke else config
