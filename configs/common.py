"""Shared by all configs: strict arguments, and the shrinker behind ':smoke'."""

import difflib
from collections.abc import Sequence

import ml_collections


def parse_arg(arg: str | None, variants: Sequence[str] = ()) -> tuple[str | None, bool]:
  """Reads what follows the colon of `--config path.py:arg`.

  Args:
    arg: at most one of `variants`, and 'smoke', separated by a comma.
    variants: the first one is the default.

  Returns:
    The variant (None where there are none) and whether to shrink.

  Raises:
    ValueError: a word that is neither.
  """
  words = [word for word in (arg or "").split(",") if word]
  chosen = [word for word in words if word in variants]
  for word in words:
    if word != "smoke" and word not in variants:
      known = [*variants, "smoke"]
      near = difflib.get_close_matches(word, known, n=1)
      hint = f"did you mean {near[0]!r}? " if near else ""
      raise ValueError(f"unknown variant {word!r}: {hint}There are: {', '.join(known)}")
  if len(chosen) > 1:
    raise ValueError(f"one variant at a time, not {', '.join(chosen)}")
  default = variants[0] if variants else None
  return (chosen[0] if chosen else default), "smoke" in words


def smoke(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Shrinks any config to seconds on a CPU and to the embedded data; same code path."""
  config.train.num_steps = 2
  config.train.num_epochs = None
  config.train.log_every = 1
  config.train.save_every = 2
  config.train.num_microbatches = 1
  config.data.batch_size = 8
  config.evaluators = {"validation": {"name": "loss", "every": 2, "max_batches": 1}}
  if config.task.name == "language_model":
    config.task.model.num_layers = 2
    config.task.model.width = 32
    config.task.model.num_heads = 4
    config.task.model.num_kv_heads = None
    config.task.model.mlp_width = None
    config.task.model.max_length = 32
    config.data.length = 16
    config.data.source = {"name": "pydoc"}
    config.data.tokenizer = {"name": "bpe", "vocab_size": 300}
    config.task.model.vocab_size = 300
    config.sampling.max_tokens = 8
  else:
    config.task.unet.width = 16
    config.task.unet.num_groups = 8
    config.task.unet.num_heads = 2
    config.task.unet.num_blocks = 1
    config.task.text_encoder.width = 32
    config.task.text_encoder.num_layers = 1
    config.task.text_encoder.num_heads = 2
    config.data.image_size = 8
    config.data.channels = 1
    config.data.source = {"name": "digits", "data_dir": None}
    config.task.unet.image_channels = 1
    config.sampling.num_steps = 2
  return config
