"""Differences modulo 59: half of the table is for training, the rest must be inferred.

The setting of grokking (Power et al. 2022, arXiv:2201.02177): the training pairs are
known after some dozens of steps, the others long after that, and the sooner the more
the weights decay. Measured results are in experiments/grokking/README.md.
"""

import ml_collections

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """`:smoke` shrinks it to seconds."""
  _, smoke = common.parse_arg(arg)
  config = common.language_model(
    {
      "vocab_size": 62,
      "max_length": 2,
      "num_layers": 1,
      "width": 128,
      "num_heads": 4,
      "use_bias": False,
      "tied_head": False,
    },
    data={
      "source": {"name": "modular"},
      "tokenizer": {"name": "characters"},
      "length": 2,
      "batch_size": 512,
    },
    optimizer={"b2": 0.98, "weight_decay": 1.0},
    train={"num_steps": 600, "log_every": 100, "save_every": 600},
    evaluators={
      "validation": {"name": "loss", "every": 50},
      "training": {"name": "loss", "every": 50, "split": "train"},
    },
    sampling={"max_tokens": 1, "temperature": 0.0},
  )
  rate = {"name": "constant", "peak": 2e-3, "warmup_steps": 10}
  config.optimizer.learning_rate = rate
  return common.smoke(config) if smoke else config
