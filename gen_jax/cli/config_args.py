"""Configs on the command line: `--config path.py:arg` and `--config.key.key=value`."""

import contextlib
import importlib
import os
from typing import Any

from gen_jax.errors import InputError

# Where these stand now; the names here go with the next release.
_MOVED = {"load": "config_files", "module": "config_files", "apply": "overrides"}


def __getattr__(name: str) -> Any:
  if name not in _MOVED:
    raise AttributeError(name)
  return getattr(importlib.import_module(f"gen_jax.build.{_MOVED[name]}"), name)


def split_overrides(argv: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
  """Takes the `--config.*` words (with `=` or a following value) out of argv.

  >>> split_overrides(['train', '--config.seed=1', '--json'])
  ([('seed', '1')], ['train', '--json'])
  """
  overrides, rest = [], []
  words = iter(argv)
  for word in words:
    if not word.startswith("--config."):
      rest.append(word)
      continue
    key, equals, value = word.removeprefix("--config.").partition("=")
    if not equals:
      value = next(words, None)
      if value is None or value.startswith("--"):
        raise InputError(f"--config.{key} needs a value: --config.{key}=VALUE")
    overrides.append((key, value))
  return overrides, rest


def flag_hint(flag: str, words: list[str]) -> str | None:
  """Where the config that `words` name has a key that was given as a flag.

  Args:
    flag: `--learning_rate`, say, or `--learning_rate=1e-3`.
  """
  from gen_jax import build
  from gen_jax.build import config_files
  from gen_jax.build import overrides as overriding

  key, _, text = flag.removeprefix("--").partition("=")
  spec = next((w.partition("=")[2] for w in words if w.startswith("--config=")), None)
  if "--config" in words[:-1]:
    spec = words[words.index("--config") + 1]
  if spec is None:
    return None
  with contextlib.suppress(InputError):
    value = overriding.literal(text, key) if text else 1
    found = build.places(config_files.load(spec), key, value)
    return f"--config.{found[0]}" if found else None


def dump(config: dict[str, Any], indent: str = "") -> str:
  """The config as indented lines, for reading."""
  lines = []
  for key, value in config.items():
    if isinstance(value, dict):
      lines += [f"{indent}{key}:", dump(value, indent + "  ")]
    else:
      lines.append(f"{indent}{key}: {value!r}")
  return os.linesep.join(lines)


def show_keys(config: dict[str, Any]) -> dict[str, Any]:
  """Prints every key that a config's blocks have: value, type, range, meaning."""
  from gen_jax import build

  shown = {}
  for key in build.keys(config):
    entry = {"value": _named(key.value), "wanted": key.wanted}
    if not key.is_needed:
      entry["default"] = _named(key.default)
    shown[key.path] = {**entry, "meaning": key.meaning}
    default = f"; default {entry['default']}" if "default" in entry else "; needed"
    print(f"{key.path} = {entry['value']}\n    {key.wanted}{default}")
    if key.meaning:
      print(f"    {key.meaning}")
  return {"keys": shown}


def _named(value: Any) -> str:
  """A value in a line: a block and a function by their names."""
  if isinstance(value, dict):
    return value.get("name", "a block")
  return getattr(value, "__name__", repr(value))
