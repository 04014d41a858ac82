"""Characters of Shakespeare: nanoGPT's two settings, and the best of the small one.

    gen-jax train --config configs/lm/shakespeare.py:cpu --workdir runs/shakespeare \\
      --config.data.source=files --config.data.source.pattern=tinyshakespeare.txt

Without the second line TFDS's `tiny_shakespeare` is downloaded. The first 90 % of the
text are for training; all of the last 10 % (111,540 characters) is scored, in windows
of the training length.

variant  model                     tokens seen   nanoGPT reports
cpu      4 layers, 4 heads, 128    1.5 million   1.88 (random windows, peak 1e-3)
gpu      6 layers, 6 heads, 384    82 million    1.4697
best     4 layers, 4 heads, 128    1.5 million   -

Measured results are in experiments/shakespeare/README.md.
"""

import ml_collections

from configs import common

VARIANTS = ("cpu", "gpu", "best")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """`:cpu`, `:gpu` or `:best`, each also with `,smoke`."""
  variant, smoke = common.parse_arg(arg, VARIANTS)
  is_small = variant != "gpu"
  length = 64 if is_small else 256
  config = common.language_model(
    {
      "vocab_size": 65,
      "max_length": length,
      "num_layers": 4 if is_small else 6,
      "width": 128 if is_small else 384,
      "num_heads": 4 if is_small else 6,
      "norm": {"name": "layer_norm", "use_bias": False},
      "use_bias": False,
      "dropout": 0.0 if is_small else 0.2,
    },
    data={
      "source": {
        "name": "tfds_text",
        "dataset": "tiny_shakespeare",
        "validation_split": "validation+test",
      },
      "tokenizer": {"name": "characters"},
      "length": length,
      "batch_size": 12 if is_small else 64,
    },
    optimizer={
      # nanoGPT's CPU example takes 1e-3, at which 2,000 steps are not enough.
      "learning_rate": {"peak": 2e-3 if is_small else 1e-3, "warmup_steps": 100},
      "b2": 0.99,
    },
    train={
      "num_steps": 2000 if is_small else 5000,
      "log_every": 100,
      "save_every": 1000,
    },
    evaluators={"validation": {"name": "loss", "every": 1000}},
    sampling={"max_tokens": length - 16, "top_p": 1.0},
  )
  if variant == "best":
    _improve(config)
  return common.smoke(config) if smoke else config


def _improve(config: ml_collections.ConfigDict) -> None:
  """A modern transformer with the same number of tokens and (99 % of) weights."""
  model = config.task.model
  model.norm = {"name": "rms_norm"}
  model.position = None
  model.rotary = {"name": "rotary"}
  model.mlp = {"name": "mlp", "activation": "relu_squared"}
  rate = {"name": "linear", "peak": 6e-3, "warmup_steps": 100}
  config.optimizer = {"name": "muon", "learning_rate": rate}
