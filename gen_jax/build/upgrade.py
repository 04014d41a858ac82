"""Config keys of the release before this one, read by their new names.

Workdirs keep the config they were made with; files and command lines may hold old names
for one release more.
"""

from collections.abc import Mapping
from typing import Any

KEYS = {"attend": "attention_impl", "clock_offset": "timestep_offset"}  # below `task`


def key(path: str) -> str:
  """A dotted config key by its new name.

  >>> key("task.model.attend")
  'task.model.attention_impl'
  """
  head, *rest = path.split(".")
  return ".".join([head, *(KEYS.get(part, part) for part in rest)])


def config(old: Mapping[str, Any]) -> Mapping[str, Any]:
  """A config with new names; what is no config stays what it is."""
  if not isinstance(old, dict) or "task" not in old:
    return old
  return {**old, "task": _block(old["task"])}


def _block(value: Any) -> Any:
  if not isinstance(value, dict):
    return value
  return {KEYS.get(name, name): _block(inner) for name, inner in value.items()}


def renamed(old: Mapping[str, Any], path: str = "task") -> list[tuple[str, str]]:
  """(old, new) dotted keys that a config has below `path`."""
  found = []
  for name, value in old[path].items() if isinstance(old.get(path), dict) else ():
    below = f"{path}.{name}"
    if key(below) != below:
      found.append((below, key(below)))
    if isinstance(value, dict):
      found += renamed({below: value}, below)
  return found
