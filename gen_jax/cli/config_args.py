"""Configs on the command line: `--config path.py:arg` and `--config.key.key=value`."""

import ast
import contextlib
import importlib.util
import os
import pathlib
import sys
import traceback
import types
import typing
import warnings
from typing import Any

from gen_jax import ranges
from gen_jax.system import files
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
      if value is None or value.startswith("--"):
        raise InputError(f"--config.{key} needs a value: --config.{key}=VALUE")
    overrides.append((key, value))
  return overrides, rest


def module(path: str) -> types.ModuleType:
  """Runs a config file.

  Raises:
    InputError: no such file.
  """
  file = files.path(path, "--config").absolute()
  if not file.is_file():
    known = map(str, pathlib.Path("configs").glob("*/*.py"))
    raise unknown("config file", path, (f for f in known if "__" not in f))
  # Configs import `configs.common`: make the folder above `configs` importable.
  for parent in file.parents:
    if parent.name == "configs" and str(parent.parent) not in sys.path:
      sys.path.insert(0, str(parent.parent))
  loader = importlib.util.spec_from_file_location("gen_jax_config", file)
  loaded = importlib.util.module_from_spec(loader)
  loader.loader.exec_module(loaded)
  return loaded


def load(spec: str) -> dict[str, Any]:
  """Runs `get_config` of a config file.

  Args:
    spec: path of a Python file, and after a colon the argument of its get_config.

  Raises:
    InputError: no such file, not a config, or an argument it refuses.
  """
  path, _, arg = (spec, "", "") if "://" in spec else spec.partition(":")
  try:
    loaded = module(path)
    if not hasattr(loaded, "get_config"):
      raise InputError(f"config {path} has no function get_config(arg)")
    config = loaded.get_config(arg or None)
  except InputError:
    raise
  except Exception as error:  # a config is a program: anything can happen in it
    if type(error) is ValueError:  # it refuses its argument
      raise InputError(f"config {spec}: {error}") from None
    file = str(files.path(path, "--config").absolute())
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    where = f", line {lines[-1]}" if lines else ""
    raise InputError(f"config {path}{where}: {type(error).__name__}: {error}") from None
  if not hasattr(config, "to_dict"):
    raise InputError(
      f"config {path}: get_config must return a ConfigDict, not {config!r:.80}"
    )
  return _renamed(config.to_dict(), path)


def _renamed(config: dict[str, Any], path: str) -> dict[str, Any]:
  """A config by the new names of its keys, and a line if it has old ones."""
  from gen_jax.build import upgrade

  new = upgrade.config(config)
  if new != config:
    changes = ", ".join(upgrade.renamed(config))
    print(f"config {path}: {changes}; old names go with the next release")
  return new


def apply(config: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
  """Returns the config with overrides set, each checked for name, type and range."""
  from gen_jax import build  # imported here: parsing errors need not wait for jax
  from gen_jax.build import upgrade

  for old, text in overrides:
    key = upgrade.key(old)
    if key != old:
      print(f"config key {old} is now {key}; the old name goes with the next release")
    with build.pointing(config, "--config."):
      config = _set(config, key.split("."), text, key)
  return config


def _set(block: dict[str, Any], parts: list[str], text: str, path: str):
  from gen_jax import build

  name, rest = parts[0], parts[1:]
  prefix = path.removesuffix(".".join(parts)).rstrip(".")
  hints = {**dict.fromkeys(block, Any), **build.hints(prefix, block)}
  if name not in hints:
    raise build.unknown_key(prefix, block, ".".join(parts), _literal(text, path))
  inner = block.get(name)
  is_block = isinstance(inner, dict) or build.is_block(name, hints[name])
  if not rest:
    if is_block:
      return {**block, name: _parse_block(text, inner, path)}
    return {**block, name: _parse(text, inner, path, hints[name])}
  if isinstance(inner, str) or (inner is None and is_block):
    inner = {"name": inner} if inner else {}
  if not isinstance(inner, dict):
    raise InputError(f"config key {path}: {name} is {inner!r}, it has no keys")
  return {**block, name: _set(inner, rest, text, path)}


def flag_hint(flag: str, words: list[str]) -> str | None:
  """Where the config that `words` name has a key that was given as a flag.

  Args:
    flag: `--learning_rate`, say, or `--learning_rate=1e-3`.
  """
  from gen_jax import build

  key, _, text = flag.removeprefix("--").partition("=")
  spec = next((w.partition("=")[2] for w in words if w.startswith("--config=")), None)
  if "--config" in words[:-1]:
    spec = words[words.index("--config") + 1]
  if spec is None:
    return None
  with contextlib.suppress(InputError):
    found = build.places(load(spec), key, _literal(text, key) if text else 1)
    return f"--config.{found[0]}" if found else None


def _parse_block(text: str, current: Any, path: str) -> Any:
  """Reads `text` as a name, a block or None."""
  from gen_jax import build

  value = _literal(text, path)
  if not isinstance(value, str | dict | None):
    below = build.inside(path.split(".")[-1], current, path, value)
    hint = f"; did you mean --config.{below[0]}={text:.80}?" if below else ""
    raise InputError(f"config key {path}={text:.80} must be a name or a block{hint}")
  is_name = isinstance(value, str) and not isinstance(current, str)
  return {"name": value} if is_name else value


def _parse(text: str, current: Any, path: str, hint: Any) -> Any:
  """Reads `text` as the key's annotation wants it."""
  value, options = _literal(text, path), ranges.options(hint)
  if str in options and not (value is None and type(None) in options):
    value = text
  elif isinstance(value, int | float) and any(
    typing.get_origin(option) is tuple for option in options
  ):
    value = (value,)
  try:
    return ranges.typed(value, hint, path)
  except InputError as error:
    raise InputError(f"config key {error} (it is {current!r} now)") from None


def _literal(text: str, path: str) -> Any:
  """A Python literal, true, false or none in any case; anything else is text.

  Raises:
    InputError: nested deeply, with a number that no float can hold, or with keys that
      are no text.
  """
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # about escapes and the like: it is no program
      value = ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError):
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)
  except (RecursionError, MemoryError):
    raise InputError(f"config key {path}={text:.40}... is nested too deeply") from None
  files.check_depth(value, f"config key {path}={text:.40}")
  level = [value]
  while level:
    item = level.pop()
    if isinstance(item, int | float | complex) and not abs(item) <= sys.float_info.max:
      raise InputError(f"config key {path}={text:.40} is beyond what a float can hold")
    if isinstance(item, dict) and not all(isinstance(name, str) for name in item):
      raise InputError(f"config key {path}={text:.40} has keys that are no text")
    if isinstance(item, list | tuple | set | dict):
      level += item.values() if isinstance(item, dict) else item
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
