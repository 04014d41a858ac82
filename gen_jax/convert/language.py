"""What the formats of language models share.

Each format is one file, `gpt2` or `llama`: the table of its tensors, and its
config.json to a config's model block and back. `architectures.ALL` lists them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from gen_jax import build
from gen_jax.convert import keys, names
from gen_jax.models import transformer
from gen_jax.nn import attention
from gen_jax.types import unsupported

Foreign = dict[str, Any]
# {foreign name: ours}; export writes the first of several.
_ACTIVATIONS = {
  "gelu_new": "gelu",
  "gelu_pytorch_tanh": "gelu",
  "gelu": "gelu_exact",
  "silu": "silu",
  "swish": "silu",
  "relu": "relu",
}


@dataclasses.dataclass(frozen=True)
class Architecture:
  """One format of language models, as transformers has it.

  Attributes:
    title: for messages.
    name: of its class.
    model_type: of its configs.
    table: of its tensors.
    prefix: omitted in files of the model without its head.
    buffers: suffixes of tensors that are not parameters.
    read: config.json to a model block.
    write: the inverse, from a Config.
    misfits: parts of a Config that the format cannot express.
    biasless: config.json to the parts of layers whose biases are not in the files.
    has_biases: every norm and linear map but the head has one in the files.
  """

  title: str
  name: str
  model_type: str
  table: Sequence[names.TensorMap]
  prefix: str
  buffers: tuple[str, ...]
  read: Callable[[keys.Reader], Foreign]
  write: Callable[[transformer.Config], Foreign]
  misfits: Callable[[transformer.Config], list[str]]
  biasless: Callable[[Foreign], tuple[str, ...]] = lambda config: ()
  has_biases: bool = False


def activation(name: str) -> str:
  """Our name of an activation."""
  if name not in _ACTIVATIONS:
    raise unsupported("activation (of config.json)", name, _ACTIVATIONS)
  return _ACTIVATIONS[name]


def foreign_activation(function: Callable) -> str | None:
  """The inverse of `activation`; None where the formats have no name."""
  table = build.TABLES["activation"]
  for foreign, own in _ACTIVATIONS.items():
    if table[own].make() is function:
      return foreign
  return None


def misfits(cfg: transformer.Config, *more: tuple[str, bool]) -> list[str]:
  """The parts of a model that are wrong, those that are for all formats first."""
  own = cfg.mlp(hidden=1).activation
  return [
    text
    for text, wrong in (
      (f"window={cfg.window}", cfg.window is not None),
      ("attention other than softmax", not attention.is_exact(cfg.attention_impl)),
      ("its activation", foreign_activation(own) is None),
      *more,
    )
    if wrong
  ]
