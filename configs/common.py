"""Shared by all configs: their arguments, common defaults, and ':smoke'.

What a config does not set has the default of the code: `gen-jax train --keys` lists all
keys, and `--dry_run` the values that a run would have.
"""

import difflib
from collections.abc import Sequence

import ml_collections


def parse_arg(arg: str | None, variants: Sequence[str] = ()) -> tuple[str | None, bool]:
  """Parses what follows the colon in `--config path.py:arg`.

  Args:
    arg: at most one of `variants`, and 'smoke', separated by a comma.
    variants: the first one is the default.

  Returns:
    The variant (None if there are none), and whether to shrink.

  Raises:
    ValueError: another word.
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


def language_model(model: dict, **blocks: dict) -> ml_collections.ConfigDict:
  """A complete experiment with a transformer: GPT-2's defaults, and what differs.

  Args:
    model: keys of `transformer`; the defaults are GPT-2's.
    blocks: keys that replace defaults in the block of that name (data, optimizer,
      train, sampling, mesh), or all of `evaluators`.
  """
  config = {
    "task": {
      "name": "language_model",
      "model": {
        "name": "transformer",
        "vocab_size": 50257,
        "max_length": 1024,
        "num_layers": 12,
        "width": 768,
        "num_heads": 12,
        **model,
      },
    },
    "data": {
      "name": "text",
      "source": {"name": "pydoc"},
      "tokenizer": {"name": "bpe", "vocab_size": 50257},
      "length": 1024,
      "batch_size": 16,
    },
    "sampling": {"name": "text", "max_tokens": 120, "temperature": 0.8, "top_p": 0.95},
  }
  rate = {"peak": 6e-4, "warmup_steps": 100, "final_fraction": 0.1}
  config.update(_training(rate, b2=0.95, weight_decay=0.1))
  config = ml_collections.ConfigDict(config)
  evaluators = blocks.pop("evaluators", None)
  if evaluators is not None:
    config.evaluators = evaluators
  for name, values in blocks.items():
    for key, value in values.items():
      if name == "optimizer" and key == "learning_rate":
        config.optimizer.learning_rate.update(value)
      else:
        config[name][key] = value
  return config


def unet(**changes) -> dict:
  """A small UNet, and what differs."""
  return {"name": "unet", "num_blocks": 1, "num_heads": 4, "num_groups": 8, **changes}


def text(**changes) -> dict:
  """Conditioning on captions with a small text encoder, and what differs."""
  return {
    "name": "text",
    "text_encoder": {
      "name": "text_encoder",
      "vocab_size": 512,
      "num_heads": 4,
      **changes,
    },
  }


def diffusion(network: dict, conditioning: dict, **changes) -> dict:
  """A diffusion task on pixels, with a cosine schedule and v; and what differs."""
  return {
    "name": "diffusion",
    "network": network,
    "conditioning": conditioning,
    "schedule": {"name": "cosine"},
    "target": {"name": "v"},
    "weighting": {"name": "unit"},
    "time_sampler": {"name": "stratified"},
    "codec": {"name": "identity"},
    "drop_prob": 0.1,
    **changes,
  }


def images(
  task: dict, data: dict, optimizer: dict, train: dict
) -> ml_collections.ConfigDict:
  """A complete experiment with images: defaults, and what differs."""
  rate = {"peak": 1e-3, "warmup_steps": 50, "final_fraction": 0.05}
  rate.update(optimizer.pop("learning_rate", {}))
  config = {
    "task": task,
    "data": data,
    "sampling": {
      "name": "image",
      "sampler": {"name": "dpmpp_2m"},
      "num_steps": 30,
      "guidance_scale": 3.0,
    },
    **_training(rate, **{"b2": 0.99, "weight_decay": 0.01, **optimizer}),
  }
  config["train"].update(train)
  return ml_collections.ConfigDict(config)


def _training(rate: dict, **optimizer) -> dict:
  """The blocks of every experiment: training, evaluation and sharding."""
  return {
    "seed": 0,
    "optimizer": {
      "name": "adamw",
      "learning_rate": {"name": "cosine", **rate},
      **optimizer,
    },
    "train": {"num_steps": 1000, "log_every": 20},
    "evaluators": {"validation": {"name": "loss", "every": 500}},
    "mesh": {"name": "mesh"},
  }


def smoke(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Shrinks any config to seconds on a CPU, on embedded data, by the same code path."""
  config.train.num_steps = 2
  config.train.log_every = 1
  config.train.save_every = 2
  config.train.health_check = False
  config.data.batch_size = 8
  config.evaluators = {"validation": {"name": "loss", "every": 2, "max_batches": 1}}
  if config.task.name == "language_model":
    config.task.model.num_layers = 2
    config.task.model.width = 32
    config.task.model.num_heads = 4
    config.task.model.num_kv_heads = None
    config.task.model.head_dim = None
    config.task.model.dtype = "float32"
    config.task.model.mlp_width = None
    config.task.model.max_length = 32
    config.data.length = 16
    config.data.source = {"name": "pydoc"}
    config.data.tokenizer = {"name": "bpe", "vocab_size": 300}
    config.task.model.vocab_size = 300
    config.sampling.max_tokens = 8
  elif config.task.name == "autoencoder":
    config.task.autoencoder.width = 8
    config.task.autoencoder.num_groups = 4
    config.task.autoencoder.multipliers = (1, 2)
    config.task.autoencoder.image_channels = 1
    if config.task.get("discriminator"):
      config.task.discriminator.image_channels = 1
      config.task.discriminator.num_layers = 2
    config.data.image_size = 8
    config.data.channels = 1
    config.data.source = {"name": "digits"}
  else:
    if config.task.network.name == "unet":
      config.task.network.num_groups = 8
      config.task.network.num_blocks = 1
      config.task.network.multipliers = (1, 2)
      config.task.network.attention_levels = ()  # the middle still has it
    else:
      config.task.network.num_layers = 2
      config.task.network.image_size = 8
    config.task.network.width = 16
    config.task.network.num_heads = 2
    if config.task.conditioning.name == "text":
      config.task.conditioning.text_encoder.width = 32
      config.task.conditioning.text_encoder.num_layers = 1
      config.task.conditioning.text_encoder.num_heads = 2
    elif config.task.conditioning.name == "labels":
      config.task.conditioning.num_classes = 10
    config.data.image_size = 8
    config.data.channels = 1
    config.data.source = {"name": "digits"}
    config.task.network.image_channels = 1
    config.task.codec = {"name": "identity"}
    config.data.name = "images"
    for key in ("latent_size", "latent_channels"):
      if key in config.data:
        del config.data[key]
    config.sampling.num_steps = 2
  return config
