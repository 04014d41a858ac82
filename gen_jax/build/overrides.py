"""Values set in a config by dotted keys, each checked for name, type and range."""

import ast
import os
import sys
import typing
import warnings
from collections.abc import Sequence
from typing import Any

from gen_jax import build, ranges
from gen_jax.build import registry, upgrade
from gen_jax.system import files
from gen_jax.types import InputError

Overrides = Sequence[tuple[str, Any]]


def apply(config: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
  """Returns the config with overrides set, each checked for name, type and range.

  Args:
    overrides: {dotted key: value}, in order; text is read as on the command line.
  """
  registry.load(config)
  for old, value in overrides:
    plain = value.item() if hasattr(value, "item") else value  # a NumPy number
    key, text = upgrade.key(old), value if isinstance(value, str) else repr(plain)
    if key != old:
      print(f"config key {old} is now {key}; the old name goes with the next release")
    with build.pointing(config, "--config."):
      config = _set(config, key.split("."), text, key)
    if key == "imports":  # files as seen from here
      names = registry.named(config)
      found = (os.path.abspath(n) if n.endswith(".py") else n for n in names)
      config = {**config, "imports": tuple(found)}
      registry.load(config)
  return config


def _set(block: dict[str, Any], parts: list[str], text: str, path: str):
  name, rest = parts[0], parts[1:]
  prefix = path.removesuffix(".".join(parts)).rstrip(".")
  hints = {**dict.fromkeys(block, Any), **build.hints(prefix, block)}
  if name not in hints:
    raise build.unknown_key(prefix, block, ".".join(parts), literal(text, path))
  inner = block.get(name, build.default(prefix, block, name))
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


def _parse_block(text: str, current: Any, path: str) -> Any:
  """Reads `text` as a name, a block or None."""
  value = literal(text, path)
  if not isinstance(value, str | dict | None):
    below = build.inside(path.split(".")[-1], current, path, value)
    hint = f"; did you mean --config.{below[0]}={text:.80}?" if below else ""
    raise InputError(f"config key {path}={text:.80} must be a name or a block{hint}")
  is_name = isinstance(value, str) and not isinstance(current, str)
  return {"name": value} if is_name else value


def _parse(text: str, current: Any, path: str, hint: Any) -> Any:
  """Reads `text` as the type of the key's annotation."""
  value, options = literal(text, path), ranges.options(hint)
  tuples = [typing.get_args(o) for o in options if typing.get_origin(o) is tuple]
  if str in options and not (value is None and type(None) in options):
    value = text
  elif isinstance(value, str):
    value = (value,) if any(str in inner for inner in tuples) else value
  elif isinstance(value, int | float) and tuples:
    value = (value,)
  try:
    return ranges.typed(value, hint, path)
  except InputError as error:
    raise InputError(f"config key {error} (it is {current!r} now)") from None


def literal(text: str, path: str) -> Any:
  """A Python literal, true, false or none in any case; anything else is text.

  Raises:
    InputError: nested too deeply, a number that no float can hold, or keys that are
      not text.
  """
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # about escapes and the like: it is not a program
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
