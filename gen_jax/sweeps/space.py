"""Spaces of arms: plain lists of overrides, and the runs that they make of a config."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gen_jax import build
from gen_jax.build import overrides as overriding
from gen_jax.system import files
from gen_jax.types import InputError

Overrides = dict[str, Any]
Space = list[Overrides]


def values(key: str, options: Iterable[Any]) -> Space:
  """One arm for each value of a key.

  >>> values("seed", range(2))
  [{'seed': 0}, {'seed': 1}]
  """
  return [{key: option} for option in options]


def fixed(overrides: Mapping[str, Any] | None = None) -> Space:
  """A single arm; without overrides the config as it is.

  >>> fixed()
  [{}]
  """
  return [dict(overrides or {})]


def chain(*spaces: Space) -> Space:
  """The arms of all spaces, one space after another.

  >>> chain(fixed(), values("seed", [1]))
  [{}, {'seed': 1}]
  """
  return [dict(arm) for space in spaces for arm in space]


def zip_(columns: Mapping[str, Sequence[Any]]) -> Space:
  """Arm i takes the i-th value of every key.

  >>> zip_({"width": (64, 128), "num_heads": (2, 4)})
  [{'width': 64, 'num_heads': 2}, {'width': 128, 'num_heads': 4}]

  Raises:
    InputError: columns of unequal length.
  """
  lengths = {key: len(column) for key, column in columns.items()}
  if len(set(lengths.values())) > 1:
    listed = ", ".join(f"{key} has {length}" for key, length in lengths.items())
    raise InputError(f"zip_ needs as many values of every key: {listed}")
  rows = zip(*columns.values(), strict=True)
  return [dict(zip(columns, row, strict=True)) for row in rows]


def product(*spaces: Space) -> Space:
  """Every combination of one arm of each space; the last space varies fastest.

  >>> product(values("a", (1, 2)), values("b", (3,)))
  [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]

  Raises:
    InputError: two spaces set one key.
  """
  arms = []
  for parts in itertools.product(*spaces):
    arm: Overrides = {}
    for part in parts:
      if twice := sorted(arm.keys() & part.keys()):
        raise InputError(f"product sets {twice[0]} twice; take it out of one space")
      arm |= part
    arms.append(arm)
  return arms


@dataclasses.dataclass(frozen=True)
class Arm:
  """One run of a sweep.

  Attributes:
    name: what differs from other arms, "peak=0.001,seed=2"; a folder's name.
    overrides: {dotted key: value}.
    config: the config with them, all defaults written out.
    sha256: of that, which identifies the arm.
  """

  name: str
  overrides: Overrides
  config: Mapping[str, Any]
  sha256: str

  @property
  def settings(self) -> list[tuple[str, Overrides]]:
    """(what its metrics' names begin with, overrides) of each row that it gives.

    One, with nothing; or those of an evaluator `sampling_sweep`.
    """
    blocks = [block or {} for block in self.config.get("evaluators", {}).values()]
    labels = [label for block in blocks for label, _ in block.get("settings", ())]
    return [(f"{label}/", _read(label)) for label in labels] or [("", {})]


def arms(config: Mapping[str, Any], space: Space) -> list[Arm]:
  """Resolves and checks every arm before any of them runs.

  Args:
    config: the base config.

  Raises:
    InputError: an empty space, an override that the config refuses, two arms of one
      config, or a key that never changes anything.
  """
  if not space:
    raise InputError("the sweep has no arms; get_sweep() must return at least one")
  found = resolve(config, space, _names(space))
  usual = build.resolved(config)
  useless = {
    key
    for key in keys(space)
    if all(
      _at(arm.config, key) == _at(usual, key) and not _counts(config, arm, key)
      for arm in found
      if key in arm.overrides
    )
  }
  if useless:
    key = min(useless)
    raise InputError(f"override {key}={_at(usual, key)!r} changes nothing; remove it")
  return found


def _counts(config: Mapping[str, Any], arm: Arm, key: str) -> bool:
  """Whether an arm would be another one without this override, or none.

  A value may be that of the base config and still count: in a block that another
  override replaces, the default is another.
  """
  rest = {k: value for k, value in arm.overrides.items() if k != key}
  try:
    (other,) = resolve(config, [rest], [arm.name])
  except InputError:
    return True
  return other.config != arm.config


def resolve(
  config: Mapping[str, Any], space: Space, names: Sequence[str] | None = None
) -> list[Arm]:
  """`arms`, of which a key may change nothing: they are a part of a larger space.

  Args:
    names: of the arms; by default what sets them apart.
  """
  found: dict[str, Arm] = {}
  for name, given in zip(names or _names(space), space, strict=True):
    name, overrides = _file_name(name), plain(given)
    texts = [(key, text(value)) for key, value in overrides.items()]
    try:
      resolved = build.resolved(overriding.apply(config, texts))
      build.check_config(resolved)
    except InputError as error:
      raise InputError(f"arm {name}: {error}") from None
    digest = files.value_sha256(resolved)
    if digest in found:
      raise InputError(f"arms {found[digest].name} and {name} have one config")
    found[digest] = Arm(name, overrides, resolved, digest)
  return list(found.values())


def without_seed(overrides: Mapping[str, Any]) -> Overrides:
  """What arms that repeat each other have in common."""
  return {key: value for key, value in overrides.items() if key != "seed"}


def keys(space: Space) -> list[str]:
  """All keys that arms set, in the order in which they appear.

  >>> keys([{"a": 1}, {"b": 2, "a": 3}])
  ['a', 'b']
  """
  return list(dict.fromkeys(key for arm in space for key in arm))


def varied(space: Sequence[Mapping[str, Any]]) -> list[str]:
  """Keys that do not have one value in all arms, in their order."""
  absent = object()
  return [
    key for key in keys(space) if len({text(a.get(key, absent)) for a in space}) > 1
  ]


def plain(value: Any) -> Any:
  """A value with Python's own numbers and tuples for NumPy's.

  >>> plain((np.float64(0.5), np.arange(2)))
  (0.5, (0, 1))
  """
  value = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
  if isinstance(value, Mapping):
    return {key: plain(item) for key, item in value.items()}
  return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def text(value: Any) -> str:
  """A value as the command line takes it."""
  return value if isinstance(value, str) else repr(plain(value))


def _at(config: Any, key: str) -> Any:
  for part in key.split("."):
    config = config.get(part) if isinstance(config, Mapping) else None
  return config


def _names(space: Space) -> list[str]:
  """A name for each arm: keys that vary, by as few of their last parts as needed."""
  every, some = keys(space), varied(space)
  names = [label({k: v for k, v in arm.items() if k in some}, every) for arm in space]
  return [_file_name(name or "base") for name in names]


def label(overrides: Overrides, keys: Sequence[str]) -> str:
  """Overrides in short: "peak=0.001,seed=2".

  Args:
    keys: all that a sweep sets, from which the short names must differ.
  """
  return ",".join(f"{short(k, keys)}={text(v)}" for k, v in overrides.items())


def short(key: str, keys: Sequence[str]) -> str:
  """As few last parts of a dotted key as tell it from the others."""
  parts = key.split(".")
  for num in range(1, len(parts) + 1):
    last = ".".join(parts[-num:])
    if sum(f".{other}".endswith(f".{last}") for other in keys) == 1:
      return last
  return key


def _read(label: str) -> Overrides:
  """The overrides of a label.

  >>> _read("sampler=ddim,evaluations=8")
  {'sampler': 'ddim', 'evaluations': 8}
  """
  pairs = (part.partition("=") for part in label.split(","))
  return {key: overriding.literal(value, key) for key, _, value in pairs}


def _file_name(name: str) -> str:
  """Without what file systems or shells give a meaning; long names end in a hash."""
  plain = "".join(c if c.isalnum() or c in "=,.+-_" else "_" for c in name).strip(".")
  if len(plain) <= 120 and plain == name:
    return plain
  return f"{plain[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
