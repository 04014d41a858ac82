"""Users' own names: functions and classes that a config may name, without a fork.

A module calls `gen_jax.register("attention_impl", fn)`, and a config file imports that
module, or is it. A run records the modules of all names that its config uses in its
`imports`, by name if they are in a package, else by file, and they are imported when
its workdir is opened. An installed package names its module as an entry point of the
group `gen_jax` in its pyproject.toml; such modules are always imported.
"""

import functools
import importlib.metadata
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from gen_jax.build import config_files
from gen_jax.build.tables import HOW, TABLES
from gen_jax.types import InputError, one_line, unknown

_HOMES: dict[tuple[str, str], str | None] = {}  # (kind, name) -> module or file
_IMPORTED: set[str | None] = set()


def register(kind: str, made: Any, name: str | None, home: Mapping[str, Any]) -> None:
  """See `gen_jax.register`.

  Args:
    home: globals of the module that asks; a script or notebook is not recorded.
  """
  name = getattr(made, "__name__", "") if name is None else name
  if not isinstance(kind, str) or kind not in HOW:
    raise unknown("kind (of what can be registered)", kind, HOW)
  if not isinstance(name, str) or not name.isidentifier():
    raise InputError(f"{kind} {name!r:.80} needs a name of letters, digits and _")
  if name in TABLES[kind] and (kind, name) not in _HOMES:
    raise InputError(f"{kind} {name!r} is one of gen_jax; register it by another name")
  where = _where(home)
  if _HOMES.get((kind, name), where) != where:
    other = _HOMES[kind, name]
    raise InputError(f"{kind} {name!r} is registered already, by {other}; rename one")
  try:
    TABLES[kind][name] = HOW[kind](made)
    _check_keys(TABLES[kind][name].keys().values())
  except (TypeError, KeyError, ValueError) as error:
    TABLES[kind].pop(name, None)
    raise InputError(f"{made!r:.80} is no {kind}: {one_line(error)}") from None
  _HOMES[kind, name] = where
  _IMPORTED.add(where)


def _check_keys(keys: Iterable[inspect.Parameter]) -> None:
  for key in keys:
    if key.kind not in (key.POSITIONAL_OR_KEYWORD, key.KEYWORD_ONLY):
      raise TypeError(f"{key} is no key of a config: take arguments by name alone")


def _where(home: Mapping[str, Any]) -> str | None:
  name, file = home.get("__name__", "__main__"), home.get("__file__")
  if name == "__main__":
    return None
  return name if "." in name or file is None else os.path.abspath(file)


def homes() -> list[str]:
  """Modules and files that registered a name."""
  return sorted({home for home in _HOMES.values() if home})


def blamed(error: BaseException) -> str:
  """FILE:LINE where an error left a module that registered a name; '' if nowhere."""
  own = {home for home in _IMPORTED if home}
  own |= {getattr(sys.modules.get(name), "__file__", None) or name for name in own}
  frames = traceback.extract_tb(error.__traceback__)
  found = [f"{x.filename}:{x.lineno}" for x in frames if x.filename in own]
  return found[-1] if found else ""


def load(config: Any) -> None:
  """Imports the modules of a config's `imports`, and those of installed packages.

  Raises:
    InputError: a module that cannot be found, or that fails.
  """
  _load_installed()
  for name in named(config):
    if name in _IMPORTED:
      continue
    if name.endswith(".py") and not os.path.isabs(name):
      raise InputError(f"imports: {name} must be an absolute path")
    try:
      config_files.find(name)
    except InputError:
      raise InputError(
        f"the config's names are registered by {name}, which cannot be found: install"
        " it, add its folder to PYTHONPATH, or say --config.imports=FILE_OR_MODULE"
      ) from None
    _run(name, config_files.module, name)
    _IMPORTED.add(name)


@functools.cache
def _load_installed() -> None:
  for point in importlib.metadata.entry_points(group="gen_jax"):
    _run(f"the entry point {point.name} = {point.value}", point.load)


def _run(what: str, how: Callable, *args: Any) -> None:
  try:
    how(*args)
  except InputError:
    raise
  except (Exception, SystemExit) as error:  # a module may raise anything
    kind = type(error).__name__
    raise InputError(f"{what} cannot be imported: {kind}: {one_line(error)}") from None


def named(config: Any) -> tuple[str, ...]:
  """The modules that a config's `imports` names; () if it cannot be read."""
  names = config.get("imports") if isinstance(config, Mapping) else ()
  names = names if isinstance(names, list | tuple) else ()
  return tuple(name for name in names if isinstance(name, str))


def used(config: Mapping[str, Any], kind: Callable[[str], str]) -> tuple[str, ...]:
  """Modules that a config names, and those of the registered names in it.

  Args:
    kind: dotted path of a block -> its kind.
  """
  return tuple(dict.fromkeys([*named(config), *_homes(config, kind)]))


def _homes(block: Any, kind: Callable[[str], str], path: str = "") -> Iterator[str]:
  for key, value in block.items() if isinstance(block, Mapping) else ():
    below = f"{path}.{key}" if path else key
    names = value.get("name") if isinstance(value, Mapping) else value
    for name in names if isinstance(names, list | tuple) else [names]:
      if isinstance(name, str) and (home := _HOMES.get((kind(below), name))):
        yield home
    yield from _homes(value, kind, below)
