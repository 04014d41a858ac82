"""Config files: `path.py:arg`, a program whose get_config returns a ConfigDict."""

import copy
import importlib.util
import pathlib
import sys
import traceback
import types
from typing import Any

from gen_jax.build import upgrade
from gen_jax.system import files
from gen_jax.types import InputError, unknown


def module(path: str) -> types.ModuleType:
  """Runs a config file.

  Raises:
    InputError: no such file.
  """
  file = files.local(path, "--config").absolute()
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


def failure(path: str, error: Exception) -> str:
  """The error of a config file: the file, the line that raised, the error."""
  file = str(files.local(path, "--config").absolute())
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if frame.filename == file]
  where = f", line {lines[-1]}" if lines else ""
  return f"{path}{where}: {type(error).__name__}: {error}"


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
  except Exception as error:  # a config is a program and may raise anything
    if type(error) is ValueError:  # it refuses its argument
      raise InputError(f"config {spec}: {error}") from None
    raise InputError(f"config {failure(path, error)}") from None
  if not hasattr(config, "to_dict"):
    raise InputError(
      f"config {path}: get_config must return a ConfigDict, not {config!r:.80}"
    )
  return _renamed(config.to_dict(), path)


def plain(config: Any) -> dict[str, Any]:
  """A config as a plain dict: given as one, as a ConfigDict or as `FILE[:ARG]`.

  Raises:
    InputError: see `load`; or none of these.
  """
  if isinstance(config, str | pathlib.Path):
    return load(str(config))
  config = config.to_dict() if hasattr(config, "to_dict") else copy.deepcopy(config)
  if not isinstance(config, dict):
    raise InputError(
      f"a config is 'FILE[:ARG]', a ConfigDict or a dict; this is {config!r:.40}"
    )
  return _renamed(config, "given")


def _renamed(config: dict[str, Any], path: str) -> dict[str, Any]:
  """A config with the new names of its keys; prints a line if it had old ones."""
  new = upgrade.config(config)
  if new != config:
    changes = ", ".join(upgrade.renamed(config))
    print(f"config {path}: {changes}; old names go with the next release")
  return new
