"""A config at another width: what changes with it, and the base model of muP."""

from collections.abc import Mapping
from typing import Any

from gen_jax import build
from gen_jax.types import InputError

KEY = "base_width"


def place(config: build.Config) -> str | None:
  """The key of the task's block whose model has a `base_width`: model, network."""
  task = config["task"]
  for key, block in task.items() if isinstance(task, Mapping) else ():
    if isinstance(block, Mapping) and KEY in build.hints(f"task.{key}", block):
      return key
  return None


def at(
  config: build.Config, width: int, base_width: int | None = None
) -> dict[str, Any]:
  """The config of the same model at another width, with heads as its Config says.

  Args:
    base_width: of the result; None: its parametrisation is the standard one.

  Raises:
    InputError: a task whose model has no `base_width`, or numbers that do not scale.
  """
  key = place(config)
  if key is None:
    raise InputError("base_width is for transformers, UNets and DiTs; this is neither")
  task = config["task"]
  model = build.build(key, task[key], f"task.{key}").config
  keys = model.at_width(width)
  if base_width is not None:
    keys |= {k: v for k, v in task[key].items() if k.startswith("base_")}
    keys[KEY] = base_width
  return {**config, "task": {**task, key: {**task[key], **keys}}}


def of_base(config: build.Config) -> dict[str, Any] | None:
  """The config of the model whose settings are kept; None: the model is its own."""
  key = place(config)
  block = config["task"][key] if key else {}
  if block.get(KEY) in (None, block.get("width")):
    return None
  return at(config, block[KEY])
