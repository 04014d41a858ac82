"""Fine-tuning of a trained or imported language model on questions and answers.

    make quickstart   # leaves a small model of the Python documentation
    gen-jax train --config configs/lm/finetune.py:summaries --workdir runs/summaries

variant       data                                               metrics
summaries     functions of Python's library -> their docstrings  ROUGE, BLEU
completion    lines of Python's library, from both sides         exact match
instructions  alpaca_data.json: JSON or JSONL of instruction,    ROUGE, response loss
              input, output
translation   train.en and train.de, line by line                BLEU, chrF

The last two read your files: --config.data.source.pattern=FILE, or
--config.data.source.source=FILE --config.data.source.target=FILE. For chats take
--config.data.source=chats, for another model --config.init_from.workdir=W, to train
only adapters --config.adapter.name=lora. Measured results are in
experiments/finetune/README.md.
"""

import ml_collections

from configs import common

VARIANTS = ("summaries", "completion", "instructions", "translation")
DATA = {
  "summaries": {
    "name": "instructions",
    "source": {"name": "docstrings"},
    "template": "plain",
  },
  "completion": {"name": "infill", "source": {"name": "stdlib"}},
  "instructions": {
    "name": "instructions",
    "source": {
      "name": "alpaca",
      "pattern": "alpaca_data.json",
      "validation_fraction": 0.02,
    },
    "template": "alpaca",
  },
  "translation": {
    "name": "instructions",
    "source": {
      "name": "parallel",
      "source": "train.en",
      "target": "train.de",
      "validation_fraction": 0.02,
    },
    "template": "plain",
  },
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """`:summaries`, `:completion`, `:instructions` or `:translation`, `,smoke` too."""
  variant, smoke = common.parse_arg(arg, VARIANTS)
  config = common.language_model(
    {},
    data={"length": 256, "batch_size": 16},
    optimizer={
      "learning_rate": {"peak": 1e-3, "warmup_steps": 50, "final_fraction": 0.0},
      "weight_decay": 0.01,
    },
    train={"num_steps": 600, "save_every": 300},
    evaluators={
      "validation": {"name": "loss", "every": 150, "max_batches": 16},
      "answers": {"name": "answers", "every": 600, "max_tokens": 48},
    },
  )
  own = ml_collections.ConfigDict(DATA[variant])
  if smoke:
    common.smoke(config)
    config.task.model.max_length = config.data.length = 128
    own.source = {"name": "docstrings", "max_chars": 60}
    if variant == "completion":
      own.source = {"name": "stdlib"}
    config.evaluators.answers = {
      "name": "answers",
      "every": 2,
      "num": 2,
      "max_tokens": 4,
    }
  else:
    with config.unlocked():
      config.task = None  # and the tokenizer: those of the initial model
      config.init_from = {"workdir": "runs/quickstart/text"}
  config.data = ml_collections.ConfigDict({**config.data.to_dict(), **own.to_dict()})
  return config
