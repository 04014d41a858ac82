"""Configs on the command line: `--config path.py:arg` and `--config.key.key=value`."""

import ast
import glob
import importlib.util
import os
import pathlib
import sys
from typing import Any

from gen_jax.types import InputError, unknown

Overrides = list[tuple[str, str]]


def split_overrides(argv: list[str]) -> tuple[Overrides, list[str]]:
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
      if value is None:
        raise InputError(f"--config.{key} needs a value: --config.{key}=VALUE")
    overrides.append((key, value))
  return overrides, rest


def load(spec: str) -> dict[str, Any]:
  """Runs `get_config` of a config file.

  Args:
    spec: path of a Python file, and after a colon the argument of its get_config.

  Raises:
    InputError: no such file, not a config, or an argument it refuses.
  """
  path, _, arg = spec.partition(":")
  file = pathlib.Path(path).absolute()
  if not file.is_file():
    known = glob.glob("configs/*/*.py")
    raise unknown("config file", path, (f for f in known if "__" not in f))
  # Configs import `configs.common`: make the folder above `configs` importable.
  for parent in file.parents:
    if parent.name == "configs" and str(parent.parent) not in sys.path:
      sys.path.insert(0, str(parent.parent))
  loader = importlib.util.spec_from_file_location("gen_jax_config", file)
  module = importlib.util.module_from_spec(loader)
  try:
    loader.loader.exec_module(module)
    config = module.get_config(arg or None)
  except AttributeError:
    raise InputError(f"{path} has no function get_config(arg)") from None
  except (ValueError, SyntaxError, ImportError) as error:
    raise InputError(f"config {spec}: {error}") from None
  return config.to_dict()


def apply(config: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
  """Returns the config with overrides set, each checked for name and type."""
  for key, text in overrides:
    config = _set(config, key.split("."), text, key)
  return config


def _set(block: dict[str, Any], parts: list[str], text: str, path: str):
  from gen_jax import build  # imported here: parsing errors need not wait for jax

  name, rest = parts[0], parts[1:]
  prefix = path.removesuffix(".".join(parts)).rstrip(".")
  known = {**dict.fromkeys(build.keys_of(prefix, block)), **block}
  if name not in known:
    raise unknown(f"config key {path!r}: key", name, known)
  if not rest:
    return {**block, name: _parse(known[name], text, path)}
  inner = known[name]
  if isinstance(inner, str):
    inner = {"name": inner}
  if not isinstance(inner, dict):
    raise InputError(f"config key {path!r}: {name} is {inner!r}, it has no keys")
  return {**block, name: _set(inner, rest, text, path)}


def _parse(current: Any, text: str, path: str) -> Any:
  """Reads `text` as the type of the value it replaces."""

  def wrong(expected):
    return InputError(
      f"config key {path!r}: {text!r} is not {expected} (it is {current!r} now)"
    )

  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
  if value is None or current is None:
    return value
  if isinstance(current, bool):
    if not isinstance(value, bool):
      raise wrong("true or false")
    return value
  if isinstance(current, int):
    if isinstance(value, bool) or not isinstance(value, int):
      raise wrong("a whole number")
    return value
  if isinstance(current, float):
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise wrong("a number")
    return float(value)
  if isinstance(current, str):
    return text
  if isinstance(current, dict):
    if isinstance(value, dict):
      return value
    if not isinstance(value, str):
      raise wrong("a name or a block")
    return {"name": value}
  if isinstance(current, list | tuple):
    value = (value,) if isinstance(value, int | float) else value
    if not isinstance(value, list | tuple):
      raise wrong("a tuple")
    return tuple(value)
  return value


def dump(config: dict[str, Any], indent: str = "") -> str:
  """The config as indented lines, for reading."""
  lines = []
  for key, value in config.items():
    if isinstance(value, dict):
      lines += [f"{indent}{key}:", dump(value, indent + "  ")]
    else:
      lines.append(f"{indent}{key}: {value!r}")
  return os.linesep.join(lines)
