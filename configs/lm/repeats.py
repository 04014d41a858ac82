"""Copying from the context: random letters that repeat (Olsson et al. 2022).

What is new in a row cannot be predicted, what repeats needs no knowledge but the row: a
transformer of two layers learns to copy, one of one layer does not (arXiv:2209.11895).
`by_position/33-64/loss` is of letters that repeat alone. Measured results are in
experiments/induction/README.md.
"""

import ml_collections

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """`:smoke` shrinks it to seconds."""
  _, smoke = common.parse_arg(arg)
  config = common.language_model(
    {
      "vocab_size": 62,
      "max_length": 64,
      "num_layers": 2,
      "width": 64,
      "num_heads": 4,
      "position": None,
      "rotary": {"name": "rotary"},
      "use_bias": False,
      "tied_head": False,
    },
    data={
      "source": {"name": "repeats"},
      "tokenizer": {"name": "characters"},
      "length": 64,
      "batch_size": 32,
    },
    optimizer={
      "learning_rate": {"peak": 3e-3, "warmup_steps": 50},
      "b2": 0.99,
      "weight_decay": 0.01,
    },
    train={"num_steps": 1000, "save_every": 500},
    evaluators={
      "validation": {"name": "loss", "every": 50},
      "position": {"name": "by_position", "every": 50, "num": 2},
    },
    sampling={"max_tokens": 32, "temperature": 0.0},
  )
  return common.smoke(config) if smoke else config
