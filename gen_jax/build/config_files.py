"""Config files: `NAME[:ARG]`, a program whose get_config returns a ConfigDict.

A name is that of a config that comes with gen_jax (`lm/pydoc`), the path of a file
anywhere, or a module (`my_package.configs.small`). In every config `configs` is the
package of those that come with gen_jax: `from configs import common` works anywhere. A
config in a folder of that name finds its neighbours first, as in a clone. Modules next
to a config can be imported as well.
"""

import contextlib
import copy
import importlib
import importlib.util
import os
import pathlib
import sys
import traceback
import types
from typing import Any

from gen_jax.build import upgrade
from gen_jax.system import files, own_configs
from gen_jax.types import InputError, unknown


def find(name: str) -> pathlib.Path:
  """The file of a config, absolute.

  Args:
    name: of one that comes with gen_jax (as `lm/pydoc` or `configs/lm/pydoc.py`), of a
      file or of a module.

  Raises:
    InputError: there is none.
  """
  file = files.local(name, "--config").absolute()
  if file.is_file():
    return file
  own = name.removeprefix(f"{own_configs.SHARED}/").removesuffix(".py")
  if own in own_configs.names():
    return own_configs.home() / f"{own}.py"
  if _is_module(name):
    with contextlib.suppress(ImportError, ValueError):  # of a package above, a script
      spec = importlib.util.find_spec(name)
      if spec is not None and spec.has_location and spec.origin:
        return pathlib.Path(spec.origin).absolute()
  is_path = name.endswith(".py")
  known = (
    f"{own_configs.SHARED}/{own}.py" if is_path else own for own in own_configs.names()
  )
  raise unknown("config", name, known)


def _is_module(name: str) -> bool:
  """Whether a name can only be that of a module."""
  return all(map(str.isidentifier, name.split("."))) and not os.path.exists(name)


def _importable(folder: str) -> None:
  if folder not in sys.path:
    sys.path.append(folder)  # last: it hides nothing


def _share(file: pathlib.Path) -> None:
  """Makes `configs`, and modules next to a config file, importable."""
  own = [str(parent) for parent in file.parents if parent.name == own_configs.SHARED][
    :1
  ]
  path = [*dict.fromkeys([*own, str(own_configs.home())])]
  if [*getattr(sys.modules.get(own_configs.SHARED), "__path__", ())] != path:
    for name in [n for n in sys.modules if n.split(".")[0] == own_configs.SHARED]:
      del sys.modules[name]
    package = types.ModuleType(
      own_configs.SHARED, "The configs that come with gen_jax."
    )
    package.__path__ = path
    sys.modules[own_configs.SHARED] = package
  if own_configs.home() not in file.parents:
    _importable(str(file.parent))


def module(path: str) -> types.ModuleType:
  """Runs a config file.

  Raises:
    InputError: no such file.
  """
  file = find(path)
  _share(file)
  if _is_module(path):
    return importlib.import_module(path)
  spec = importlib.util.spec_from_file_location(f"gen_jax_config_{file.stem}", file)
  assert spec is not None and spec.loader is not None  # a file that is there
  loaded = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = loaded  # classes look up their module
  spec.loader.exec_module(loaded)
  return loaded


def failure(path: str, error: BaseException) -> str:
  """The error of a config file: the file, the line that raised, the error."""
  file = str(find(path))
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if frame.filename == file]
  where = f", line {lines[-1]}" if lines else ""
  return f"{path}{where}: {type(error).__name__}: {error}"


def load(spec: str) -> dict[str, Any]:
  """Runs `get_config` of a config file.

  Args:
    spec: see `find`, and after a colon the argument of its get_config.

  Raises:
    InputError: no such file, not a config, or an argument it refuses.
  """
  path, _, arg = (spec, "", "") if "://" in spec else spec.partition(":")
  _importable(os.getcwd())  # for the name of a module
  try:
    loaded = module(path)
    if not hasattr(loaded, "get_config"):
      raise InputError(f"config {path} has no function get_config(arg)")
    config = loaded.get_config(arg or None)
  except InputError:
    raise
  except (Exception, SystemExit) as error:  # a program, which may raise anything
    if type(error) is ValueError:  # it refuses its argument
      raise InputError(f"config {spec}: {error}") from None
    raise InputError(f"config {failure(path, error)}") from None
  if not hasattr(config, "to_dict"):
    raise InputError(
      f"config {path}: get_config must return a ConfigDict, not {config!r:.80}"
    )
  return _renamed(config.to_dict(), path)


def plain(config: Any) -> dict[str, Any]:
  """A config as a plain dict: given as one, as a ConfigDict or as `NAME[:ARG]`.

  Raises:
    InputError: see `load`; or none of these.
  """
  if isinstance(config, str | pathlib.Path):
    return load(str(config))
  config = config.to_dict() if hasattr(config, "to_dict") else copy.deepcopy(config)
  if not isinstance(config, dict):
    raise InputError(
      f"a config is 'NAME[:ARG]', a ConfigDict or a dict; this is {config!r:.40}"
    )
  return _renamed(config, "given")


def _renamed(config: dict[str, Any], path: str) -> dict[str, Any]:
  """A config with the new names of its keys; prints a line if it had old ones."""
  new = upgrade.config(config)
  if new != config:
    changes = ", ".join(upgrade.renamed(config))
    print(f"config {path}: {changes}; old names go with the next release")
  return dict(new)
