"""From configs to objects: the only place where names are looked up.

A block of a config is {'name': ..., keyword arguments of what the name stands for}.
Keys that are kinds themselves ('model', 'schedule', 'norm', ...) are built first, to
any depth; a bare string is short for {'name': string}. Unknown names and keys raise
`InputError` with the nearest right ones. Values are checked against the annotations of
the arguments, numbers against their ranges; numbers that programs may take as arguments
are named after their place in the config (`gen_jax.numbers`). ConfigDict stops here.

Defaults are in the signatures only: a config file leaves out what it does not change,
`resolved` writes all of them, and config.json keeps them, so that a later change of a
default changes no run.
"""

import contextlib
import dataclasses
import inspect
import json
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gen_jax import numbers, ranges
from gen_jax.build import meanings, registry
from gen_jax.build.tables import KINDS, TABLES, Entry
from gen_jax.types import InputError, unknown

Config = Mapping[str, Any]
BLOCKS = ("task", "data", "optimizer", "train", "mesh", "sampling")
OPTIONAL = ("init_from", "adapter")
IMPORTS = tuple[str, ...]  # modules or files with `gen_jax.register`
DTYPES = ("bfloat16", "float16", "float32")
_DEEPEST = 16  # blocks in blocks; a schedule is four deep
_NONE = inspect.Parameter.empty  # no default


class UnknownKey(InputError):
  """A key that a block does not have: `key`, perhaps dotted, and its value."""

  def __init__(self, message: str, key: str, value: Any):
    super().__init__(message)
    self.key, self.value = key, value


def is_block(key: str, hint: Any) -> bool:
  """Whether a key's value is a block (Heun's `scale` is, a codec's is not)."""
  return key in TABLES and not ranges.is_plain(hint)


def _name(kind: str, block: Config) -> Any:
  """What a block names; a kind with one name needs none."""
  table = TABLES.get(kind, {})
  return block.get("name", kind if len(table) == 1 else None)


def _entry(kind: str, block: Any, path: str) -> tuple[Entry, dict[str, Any]]:
  """The entry that a block names, and the block's keys, checked one level deep."""
  if isinstance(block, str):
    block = {"name": block}
  if not isinstance(block, Mapping):
    error = f"{path}={ranges.shown(block)} must be a block with a name, or a name"
    raise InputError(error)
  if path.count(".") >= _DEEPEST:
    raise InputError(f"{path:.80} is nested too deeply; {_DEEPEST} blocks are enough")
  table, name = TABLES[kind], _name(kind, block)
  if not isinstance(name, str) or name not in table:
    where = "" if kind == path else f" ({path})"
    raise unknown(f"{kind}{where}", name, table)
  keys = table[name].keys()
  values = {}
  for key, value in block.items():
    if key == "name":
      continue
    if key not in keys:
      raise unknown_key(path, block, key, value)
    hint = keys[key].annotation
    if key == "dtype" and value not in DTYPES:
      raise unknown(f"dtype (of {path})", value, DTYPES)
    if not is_block(key, hint):
      value = ranges.typed(value, hint, f"{path}.{key}")
      _check_json(value, f"{path}.{key}")
      if ranges.is_argument(value, hint):
        value = numbers.named(value, f"{path}.{key}")
    elif value is None and type(None) not in ranges.options(hint):
      raise InputError(f"{path}.{key}=None must be a name or a block")
    values[key] = value
  missing = [k for k, p in keys.items() if p.default is _NONE and k not in values]
  if missing:
    raise InputError(f"{path} {name!r} needs {', '.join(missing)}")
  return table[name], values


def _check_json(value: Any, path: str) -> None:
  try:
    json.dumps(value, allow_nan=False)
  except (TypeError, ValueError, RecursionError):
    kinds = "a finite number, a text, True, False, None or a list of these"
    raise InputError(f"{path}={ranges.shown(value)} must be {kinds}") from None


def check(kind: str, block: Any, path: str) -> None:
  """Checks names, keys, types and ranges of a block, to any depth, and builds nothing.

  Raises:
    InputError: see `build`.
  """
  if block is not None:
    entry, values = _entry(kind, block, path)
    for key, value in values.items():
      if is_block(key, entry.keys()[key].annotation):
        check(key, value, f"{path}.{key}")
      for name in value if f"{path}.{key}" in KINDS else ():  # several names
        check(KINDS[f"{path}.{key}"], name, f"{path}.{key}")


def check_config(config: Config) -> None:
  """Checks every name, key and type in a config, and builds nothing.

  Raises:
    InputError: says where and what.
  """
  needed = (*BLOCKS, "seed", "evaluators")
  known = (*needed, *OPTIONAL, "imports")
  if not isinstance(config, Mapping):
    raise InputError(
      f"a config has the keys {', '.join(known)}; this is {ranges.shown(config)}"
    )
  with pointing(config):
    for key in config:
      if key not in known:
        raise unknown_key("", config, key, config[key])
    missing = [key for key in needed if config.get(key) is None]
    if missing:
      raise InputError(f"the config needs {', '.join(missing)}")
    ranges.typed(config["seed"], ranges.Seed, "seed")
    ranges.typed(config.get("imports", ()), IMPORTS, "imports")
    registry.load(config)
    if not isinstance(config["evaluators"], Mapping):
      shown = ranges.shown(config["evaluators"])
      raise InputError(f"evaluators={shown} must be blocks by name")
    for path, block in _blocks(config):
      check(_kind(path), block, path)


def build(kind: str, block: Any, path: str | None = None, **injected: Any) -> Any:
  """Builds what a block stands for.

  Args:
    kind: a key of TABLES.
    block: {'name': ..., keys}, a bare name, or None (which stays None).
    path: of the block in the config, for messages.
    injected: arguments that are not in the config, for this block and those in it.

  Raises:
    InputError: unknown name or key, missing key, a value of the wrong type or out of
      its range, or one that its owner refuses.
  """
  path = path or kind
  if block is None:
    return None
  entry, values = _entry(kind, block, path)
  for key, value in values.items():
    if is_block(key, entry.keys()[key].annotation):
      values[key] = build(key, value, f"{path}.{key}", **injected)
  given = {key: injected[key] for key in entry.injected if key in injected}
  return entry.make(**values, **given)


def _kind(path: str) -> str:
  """The kind of the block at a dotted path of the config."""
  head, _, last = path.rpartition(".")
  return "evaluator" if head == "evaluators" else KINDS.get(path, last)


def _table(path: str, block: Config) -> tuple[Mapping[str, Entry], str]:
  """The table of names for the block at a dotted path, and the block's own or ''."""
  kind = _kind(path)
  name = _name(kind, block)
  return TABLES.get(kind, {}), name if isinstance(name, str) else ""


def _blocks(config: Config) -> Iterator[tuple[str, Any]]:
  """(path, block) of the top blocks of a config, set or not."""
  for name in (*BLOCKS, *OPTIONAL):
    yield name, config.get(name)
  named = config.get("evaluators")
  for name, block in named.items() if isinstance(named, Mapping) else ():
    yield f"evaluators.{name}", block


def resolved(config: Config) -> dict[str, Any]:
  """A config with every default written out, in one order, and tuples for lists.

  Anything that is not a valid block is kept as it is: `check` says what is wrong.

  >>> resolved({"mesh": {"fsdp": 8}, "seed": 0})["mesh"]["tensor"]
  1

  Raises:
    InputError: a module of `imports` that cannot be imported.
  """
  registry.load(config)
  written = _written(config, lambda value, default: True)
  if isinstance(config, Mapping) and (found := registry.used(config, _kind)):
    written["imports"] = found
  return written


def explicit(config: Config) -> dict[str, Any]:
  """A config without keys at their defaults: the shortest equal one.

  >>> explicit({"mesh": {"fsdp": 8, "tensor": 1}, "seed": 0})["mesh"]
  {'name': 'mesh', 'fsdp': 8}
  """
  return _written(config, operator.ne)


def _written(config: Config, wanted: Callable[[Any, Any], bool]) -> dict[str, Any]:
  if not isinstance(config, Mapping):
    return config
  found = {p: write(_kind(p), block, wanted, p) for p, block in _blocks(config)}
  named = config.get("evaluators")
  if isinstance(named, Mapping):
    named = {name: found.pop(f"evaluators.{name}") for name in named}
  order = dict.fromkeys(("seed", *BLOCKS, "evaluators"))
  known = {**order, **config, **found, "evaluators": named}
  return {k: v for k, v in known.items() if k in config or k in OPTIONAL}


def write(
  kind: str, block: Any, wanted: Callable[[Any, Any], bool], path: str = ""
) -> Any:
  """A block with its keys in their owner's order; an inner one without is its name.

  Args:
    wanted: (value, default) -> whether to write a key that has a default.
  """
  given = {"name": block} if isinstance(block, str) else block
  name = _name(kind, given) if isinstance(given, Mapping) else None
  entry = TABLES[kind].get(name) if isinstance(name, str) else None
  if entry is None or path.count(".") >= _DEEPEST:
    return block
  keys, found = entry.keys(), {"name": name}
  for key, p in keys.items():
    is_inner, below = is_block(key, p.annotation), f"{path}.{key}"
    usual = _default(key, p.default) if is_inner else p.default
    value = given.get(key, usual)
    if is_inner:
      value, usual = (write(key, v, wanted, below) for v in (value, usual))
    value = _tuples(value)
    if value is not _NONE and (usual is _NONE or wanted(value, usual)):
      found[key] = value
  found |= {key: value for key, value in given.items() if key not in {"name", *keys}}
  return found if keys or len(found) > 1 or path in BLOCKS else name


def _tuples(value: Any) -> Any:
  """JSON's lists as tuples, which configs have."""
  return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def default(path: str, block: Config, key: str) -> Any:
  """The default of a key of the block at a dotted path; None if unknown.

  >>> default("task.model", {"name": "transformer"}, "norm")
  'layer_norm'
  """
  table, name = _table(path, block)
  p = table[name].keys().get(key) if path and name in table else None
  if p is None or p.default is _NONE:
    return None
  return _default(key, p.default) if is_block(key, p.annotation) else p.default


def _default(kind: str, made: Any) -> Any:
  """The name in configs of a default that is a constructor or function."""
  for name, entry in TABLES[kind].items() if callable(made) else ():
    if entry.signature is made or entry.value is made:  # nothing is called
      return name
  return made


def hints(path: str, block: Config) -> dict[str, Any]:
  """{key: annotation} of the block at a dotted path."""
  if not path:
    blocks = dict.fromkeys((*BLOCKS, *OPTIONAL, "evaluators"), Any)
    return {**blocks, "seed": ranges.Seed, "imports": IMPORTS}
  table, name = _table(path, block)
  if not table:
    return dict.fromkeys(block, Any)
  keys = table[name].keys() if name in table else {}
  return {"name": str, **{key: p.annotation for key, p in keys.items()}}


def unknown_key(path: str, block: Config, key: str, value: Any = None) -> UnknownKey:
  """The error for an unknown key of the block at a dotted path."""
  table, name = _table(path, block)
  owner = f"{path} {name!r}" if name in table else path or "the config"
  error = unknown(f"key (of {owner})", key.split(".")[0], hints(path, block))
  others = [repr(other) for other, entry in table.items() if key in entry.keys()]
  verb = "has" if len(others) == 1 else "have"
  note = f"; {' and '.join(others)} {verb} it" if others else ""
  return UnknownKey(f"{error}{note}", key, value)


@dataclasses.dataclass(frozen=True)
class Key:
  """A key that a config has, or may have.

  Attributes:
    path: dotted.
    hint: its annotation.
    default: `inspect.Parameter.empty` where there is none.
    value: in the config, or the default.
    meaning: its line in its owner's docstring.
  """

  path: str
  hint: Any
  default: Any
  value: Any
  meaning: str = ""

  @property
  def is_needed(self) -> bool:
    """Whether a config must have it."""
    return self.default is _NONE

  @property
  def wanted(self) -> str:
    """Type and range in words, or the names that a block may have."""
    last = self.path.split(".")[-1]
    if not is_block(last, self.hint):
      return ranges.text(self.hint)
    none = " or None" if type(None) in ranges.options(self.hint) else ""
    return f"a block: {', '.join(sorted(TABLES[last]))}{none}"


def keys(config: Config) -> Iterator[Key]:
  """All keys of the blocks in a config, set or not; none of invalid blocks."""
  yield Key("seed", ranges.Seed, _NONE, config.get("seed"))
  for path, block in _blocks(config):
    yield from _keys(_kind(path), block, path)


def _keys(kind: str, block: Any, path: str) -> Iterator[Key]:
  block = {"name": block} if isinstance(block, str) else block
  if not isinstance(block, Mapping) or path.count(".") >= _DEEPEST:
    return
  entry = TABLES[kind].get(_name(kind, block))
  if entry is None:
    return
  for key, p in entry.keys().items():
    below, value = f"{path}.{key}", block.get(key, p.default)
    meaning = meanings.of(entry.signature, kind, key)
    yield Key(below, p.annotation, p.default, value, meaning)
    if is_block(key, p.annotation):
      yield from _keys(key, value, below)


def places(config: Config, key: str, value: Any = None) -> list[str]:
  """Paths at which a config has, or may have, a key of this name, which may be dotted.

  If the key is a block and the value cannot be one, the block's own key that takes the
  value: `learning_rate=1e-3` is `optimizer.learning_rate.peak`.
  """
  found = []
  for one in keys(config):
    if f".{one.path}".endswith(f".{key}"):
      last = one.path.split(".")[-1]
      inner = inside(last, one.value, one.path, value)
      found += inner if is_block(last, one.hint) and inner else [one.path]
  return found


def inside(kind: str, block: Any, path: str, value: Any) -> list[str]:
  """Paths of a block's required keys that may have this value."""
  if isinstance(value, str | Mapping | None) or kind not in TABLES:
    return []
  found = []
  for one in _keys(kind, block, path):
    if one.is_needed and ranges.is_plain(one.hint):
      with contextlib.suppress(InputError):
        ranges.typed(value, one.hint, one.path)
        found.append(one.path)
  return found


@contextlib.contextmanager
def pointing(config: Config, prefix: str = "") -> Iterator[None]:
  """Adds to an unknown key's error where the config has such a key."""
  try:
    yield
  except UnknownKey as error:
    first = error.key.split(".")[0]
    found = places(config, error.key, error.value) or places(config, first)
    found = [f"{prefix}{path}" for path in found[:3]]
    hint = f"; or did you mean {' or '.join(found)}?" if found else ""
    raise InputError(f"{error}{hint}") from None
