"""A small transformer on the bytes of the Python standard library, scaled by muP."""

import ml_collections

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """`:smoke` shrinks it to seconds."""
  _, smoke = common.parse_arg(arg)
  config = common.language_model(
    {
      "vocab_size": 257,
      "max_length": 64,
      "num_layers": 2,
      "width": 16,
      "base_width": 16,
      "num_heads": 2,
      "position": None,
      "rotary": {"name": "rotary"},
      "use_bias": False,
    },
    data={
      "source": {"name": "stdlib"},
      "tokenizer": {"name": "bytes"},
      "length": 64,
      "batch_size": 8,
    },
    optimizer={
      "learning_rate": {"peak": 2**-6, "warmup_steps": 20, "final_fraction": 0.05}
    },
    train={"log_every": 200, "save_every": 100_000, "health_check": False},
    evaluators={"validation": {"name": "loss", "every": 0, "max_batches": 128}},
  )
  return common.smoke(config) if smoke else config
