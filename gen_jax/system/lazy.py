"""Imports that wait for the first use: `--help` and typing errors need no jax."""

import contextlib
import gc
import importlib.util
import sys
import types
from collections.abc import Iterator

_LIGHT = ("gen_jax.cli", "gen_jax.errors", "gen_jax.system.files")  # loaded at once
_Lazy = importlib.util._LazyModule  # type: ignore[attr-defined]  # has no public name
_FOREIGN = ("numpy", "jax", "optax", "jinja2")  # without their parts, as C's


class _Finder:
  """Finds heavy modules as others do, and puts their loading off."""

  @staticmethod
  def find_spec(name, path=None, target=None):
    """See `importlib.abc.MetaPathFinder`."""
    is_light = any(f"{name}.".startswith(f"{light}.") for light in _LIGHT)
    if is_light or not (name.startswith("gen_jax.") or name in _FOREIGN):
      return None
    for finder in sys.meta_path:
      if finder is not _Finder and (spec := finder.find_spec(name, path, target)):
        if spec.loader is not None and hasattr(spec.loader, "exec_module"):
          spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec
    return None


@contextlib.contextmanager
def imports() -> Iterator[None]:
  """Within this context heavy modules are imported when something is asked of them."""
  sys.meta_path.insert(0, _Finder)
  try:
    yield
  finally:
    sys.meta_path.remove(_Finder)


def load() -> None:
  """Loads what was put off: afterwards all is as if imported at once."""
  # First numpy: modules in C that are imported while it loads find a part of it.
  found = [sys.modules[name] for name in _FOREIGN if name in sys.modules]
  waiting = [m for m in (*found, *sys.modules.values()) if type(m) is _Lazy]
  gc.disable()  # nothing of what is imported is garbage: a tenth of the time
  try:
    for module in waiting:
      module.__dict__  # noqa: B018 (asking for anything loads it)
  finally:
    if waiting:
      gc.freeze()  # nor does a later look find any there
    gc.enable()


def forget() -> None:
  """Drops what was put off, so that it can be again: a second import would load it."""
  for name, module in list(sys.modules.items()):
    if type(module) is _Lazy:
      del sys.modules[name]


def loaded(name: str) -> types.ModuleType | None:
  """A module that is imported already, and not put off."""
  module = sys.modules.get(name)
  return None if type(module) is _Lazy else module
