"""A small decoder-only transformer on the Python language reference.

The text is part of every Python (pydoc_data.topics), so this runs anywhere, offline. It
is half of `make quickstart`.
"""

import ml_collections

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """`:smoke` shrinks it to seconds."""
  _, smoke = common.parse_arg(arg)
  config = common.language_model(
    {
      "vocab_size": 1024,
      "max_length": 256,
      "num_layers": 4,
      "width": 192,
      "num_heads": 6,
      "position": None,
      "rotary": {"name": "rotary"},
      "use_bias": False,
      "dropout": 0.1,
    },
    data={
      "tokenizer": {"name": "bpe", "vocab_size": 1024},
      "length": 128,
      "batch_size": 16,
    },
    optimizer={
      "learning_rate": {"peak": 3e-3, "warmup_steps": 50, "final_fraction": 0.05}
    },
    train={"num_steps": 160, "save_every": 80},
    evaluators={
      "validation": {"name": "loss", "every": 80},
      "gzip": {"name": "gzip", "every": 0},
    },
  )
  return common.smoke(config) if smoke else config
