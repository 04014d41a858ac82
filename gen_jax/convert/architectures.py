"""The formats of language models: which one a config.json is of, or a model fits."""

from typing import Any

from gen_jax import build
from gen_jax.convert import gpt2, keys, language, llama
from gen_jax.models import transformer
from gen_jax.types import InputError, unsupported

ALL = (gpt2.ARCHITECTURE, llama.ARCHITECTURE)
KNOWN = " and ".join(architecture.title for architecture in ALL)


def _named(config: Any) -> language.Architecture:
  if not isinstance(config, dict):
    raise InputError(f"config.json must be a block, not {config!r:.60}")
  named = config.get("architectures")
  name = named[0] if isinstance(named, list) and named else None
  found = [a for a in ALL if name == a.name]
  if name is None:
    found = [a for a in ALL if config.get("model_type") == a.model_type]
  if not found:
    part = config.get("_class_name")
    if name is None and part is not None:
      raise InputError(
        f"config.json is of {part!r:.60}, a part of an image model; give the folder"
        " with model_index.json, which holds all its parts"
      )
    shown = name if name is not None else config.get("model_type")
    raise unsupported("architecture (of config.json)", shown, (a.name for a in ALL))
  own = config.get("auto_map") or {}
  if any(str(key).startswith("AutoModel") for key in own):
    raise InputError(
      f"config.json auto_map={own!r:.120}: the model has code of its own, which is"
      f" never run; plain {KNOWN} are supported"
    )
  return found[0]


def read(config: Any) -> tuple[language.Architecture, language.Foreign]:
  """The architecture and the model block of a config.json.

  Raises:
    InputError: another architecture, or a missing, wrong or unknown key.
  """
  architecture, reader = _named(config), keys.Reader(config, KNOWN)
  block = architecture.read(reader)
  reader.finish()
  block = {"name": "transformer", **block, "dropout": 0.0, "dtype": "float32"}
  build.build("model", block, "config.json")  # refuses sizes that do not fit
  return architecture, block


def unused_keys(config: Any) -> list[str]:
  """The keys of a config.json that `read` ignores: unknown empty ones, and sampling."""
  reader = keys.Reader(config, KNOWN)
  _named(config).read(reader)
  return reader.finish()


def fitting(config: transformer.Config) -> language.Architecture:
  """The architecture that can express a model.

  Raises:
    InputError: says for each what it cannot express.
  """
  misfits = {a.name: (a, a.misfits(config)) for a in ALL}
  for architecture, wrong in misfits.values():
    if not wrong:
      return architecture
  reasons = "; ".join(f"{name}: {', '.join(w)}" for name, (_, w) in misfits.items())
  raise InputError(
    f"the model cannot be exported, no foreign format expresses it ({reasons}); models"
    " of configs/lm/gpt2.py and configs/lm/llama.py can"
  )
