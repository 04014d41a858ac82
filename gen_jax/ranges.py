"""Types and ranges of config values.

A number's range is declared in its annotation:

    warmup_steps: ranges.Whole = 0
    b1: ranges.ProperFraction = 0.9

The annotation serves `typed` (values from a config), `check` (dataclasses built in
Python) and the lists of keys that users see.
"""

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeVar

import numpy as np

from gen_jax.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")
_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Range:
  """Numbers from `low` to `high`, both included, except those in `without`.

  A float must also lie in it when rounded to float32, the dtype that computes: a decay
  of 1 - 1e-9 becomes 1.

  Attributes:
    is_argument: whether programs take the number as an argument, see
      `gen_jax.numbers`; None: floats yes, whole numbers no.

  >>> str(Range(0.0, 1.0, without=(1.0,))), str(Range(1, 512)), str(Range(0.0))
  ('in [0, 1)', 'at least 1 and at most 512', 'at least 0 and finite')
  >>> 0.5 in Range(0.0, 1.0), 2 in Range(0.0, 1.0), float("nan") in Range()
  (True, False, False)
  """

  low: float = -_LARGEST
  high: float = _LARGEST
  without: tuple[float, ...] = ()
  is_argument: bool | None = None

  def __contains__(self, value: float) -> bool:
    if not self.low <= value <= self.high or value in self.without:
      return False
    return not isinstance(value, float) or self._holds(_float32(value))

  def _holds(self, value: float) -> bool:
    low, high = _float32(self.low), _float32(self.high)
    return low <= value <= high and value not in map(_float32, self.without)

  def __str__(self) -> str:
    ends, inner = (self.low, self.high), set(self.without)
    is_open = [end in inner for end in ends]
    inner -= {*ends}
    others = "".join(f", not {value:g}" for value in sorted(inner))
    if type(self.low) is float and _LARGEST not in map(abs, ends):
      left, right = "(" if is_open[0] else "[", ")" if is_open[1] else "]"
      return f"in {left}{self.low:g}, {self.high:g}{right}{others}"
    low = f"{'more than' if is_open[0] else 'at least'} {self.low}".removesuffix(".0")
    high = f"{'less than' if is_open[1] else 'at most'} {self.high}".removesuffix(".0")
    parts = [] if self.low == -_LARGEST else [low]
    return " and ".join([*parts, "finite" if self.high == _LARGEST else high]) + others


def _float32(value: float) -> float:
  with np.errstate(all="ignore"):
    return float(np.float32(value))


# Whole numbers. Array sizes have bounds far above real use, so that a typo gives an
# error at once, not hours of tracing.
Whole = Annotated[int, Range(0, 2**31 - 1)]
Steps = Annotated[int, Range(0, 2**31 - 1, is_argument=True)]
PositiveSteps = Annotated[int, Range(1, 2**31 - 1, is_argument=True)]
Count = Annotated[int, Range(1, 2**31 - 1)]
Size = Annotated[int, Range(1, 2**20)]
Layers = Annotated[int, Range(1, 2**10)]
Blocks = Annotated[int, Range(1, 2**7)]  # of one level
Levels = Annotated[int, Range(1, 16)]  # each halves a side
Vocabulary = Annotated[int, Range(1, 2**24)]
Seed = Annotated[int, Range(0, 2**63 - 1)]

Finite = Annotated[float, Range()]
NotNegative = Annotated[float, Range(0.0)]
Positive = Annotated[float, Range(0.0, without=(0.0,))]
NotZero = Annotated[float, Range(without=(0.0,))]
Fraction = Annotated[float, Range(0.0, 1.0)]
ProperFraction = Annotated[float, Range(0.0, 1.0, without=(1.0,))]
PositiveFraction = Annotated[float, Range(0.0, 1.0, without=(0.0,))]
OpenFraction = Annotated[float, Range(0.0, 1.0, without=(0.0, 1.0))]
# Of an architecture: tables are made of them when a program is compiled.
Constant = Annotated[float, Range(is_argument=False)]
PositiveConstant = Annotated[float, Range(0.0, without=(0.0,), is_argument=False)]
Deviation = Annotated[float, Range(0.0, is_argument=False)]  # of weights at the start

_PLAIN = {
  int: "a whole number",
  float: "a number",
  bool: "true or false",
  str: "text",
  type(None): "None",
}


def _members(hint: Any) -> list[tuple[Any, Range | None]]:
  """[(type, its range)] of the types a hint allows: int | None -> int, NoneType."""
  is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
  found = []
  for option in typing.get_args(hint) if is_union else (hint,):
    kind, *notes = (
      typing.get_args(option) if typing.get_origin(option) is Annotated else (option,)
    )
    found.append((kind, next((n for n in notes if isinstance(n, Range)), None)))
  return found


def options(hint: Any) -> tuple[Any, ...]:
  """The types that a hint allows, without their ranges.

  >>> options(Count | None)
  (<class 'int'>, <class 'NoneType'>)
  """
  return tuple(kind for kind, _ in _members(hint))


def is_plain(hint: Any) -> bool:
  """Whether a hint allows numbers, bools or text."""
  return any(kind in _PLAIN and kind is not type(None) for kind in options(hint))


def of(hint: Any) -> list[tuple[type, Range | None]]:
  """[(int or float, its range)] of each number in a hint, tuples included.

  >>> [str(allowed) for _, allowed in of(tuple[Fraction, ...] | None)]
  ['in [0, 1]']
  """
  found = []
  for kind, allowed in _members(hint):
    if typing.get_origin(kind) is tuple:
      for inner in dict.fromkeys(a for a in typing.get_args(kind) if a is not ...):
        found += of(inner)
    elif kind in (int, float):
      found.append((kind, allowed))
  return found


def is_argument(value: Any, hint: Any) -> bool:
  """Whether a value of this hint is a number that programs take as an argument."""
  chosen = {kind: a.is_argument for kind, a in of(hint) if a and kind is type(value)}
  said = chosen.get(type(value))
  return type(value) is float if said is None else said


def text(hint: Any) -> str:
  """The types and ranges that a hint allows, in words.

  >>> text(Fraction | None)
  'a number in [0, 1] or None'
  """
  return " or ".join(_words(hint))


def _words(hint: Any, *, ranges: bool = True) -> list[str]:
  words = []
  for kind, allowed in _members(hint):
    if typing.get_origin(kind) is tuple:
      inner, *rest = typing.get_args(kind)
      size = "" if ... in rest else f" of {1 + len(rest)}"
      words.append(f"a tuple{size}, each {' or '.join(_words(inner, ranges=ranges))}")
    elif kind in _PLAIN:
      words.append(f"{_PLAIN[kind]} {allowed if ranges and allowed else ''}".strip())
  return words


def typed(value: Any, hint: Any, path: str) -> Any:
  """Returns `value` in its annotated type: an int becomes a float, a list a tuple.

  Only numbers, bools, text, None and tuples of them are checked.

  Raises:
    InputError: a value of another type, or a number out of its range.
  """
  for kind, allowed in _members(hint):
    if typing.get_origin(kind) is tuple:
      inner, *rest = typing.get_args(kind)
      length = None if ... in rest else 1 + len(rest)
      if isinstance(value, list | tuple) and length in (None, len(value)):
        return tuple(typed(v, inner, f"{path}[{i}]") for i, v in enumerate(value))
    elif kind is float and _is_number(value):
      return _within(_float(value), allowed, path)
    elif kind is int and _is_number(value) and isinstance(value, int):
      return _within(int(value), allowed, path)
    elif kind in _PLAIN and type(value) is kind:
      return _within(value, allowed, path)
  expected = _words(hint, ranges=False)
  if not expected:
    return value
  raise InputError(f"{path}={shown(value)} must be {' or '.join(expected)}")


def _is_number(value: Any) -> bool:
  """Also one with a name, see `gen_jax.numbers`; what is typed has none."""
  return isinstance(value, int | float) and not isinstance(value, bool)


def _float(value: float) -> float:
  try:
    return float(value)
  except OverflowError:
    return float("inf") if value > 0 else float("-inf")


def check(instance: Any) -> None:
  """Checks a dataclass's numbers against their ranges, in `__post_init__`.

  Raises:
    InputError: a number out of its range.
  """
  for field in dataclasses.fields(instance):
    path = f"{type(instance).__name__}.{field.name}"
    _check(getattr(instance, field.name), field.type, path)


def check_rising(instance: Any, low: str, high: str) -> None:
  """Runs `check`, and requires field `low` <= field `high`."""
  check(instance)
  first, last = getattr(instance, low), getattr(instance, high)
  if first > last:
    name = type(instance).__name__
    raise InputError(f"{name}.{low}={first} must be at most {high}={last}")


def _check(value: Any, hint: Any, path: str) -> None:
  for kind, allowed in _members(hint):
    if typing.get_origin(kind) is tuple and isinstance(value, tuple):
      inner = typing.get_args(kind)[0]
      for i, item in enumerate(value):
        _check(item, inner, f"{path}[{i}]")
    elif isinstance(value, int | float):  # a traced array has no value yet
      _within(value, allowed, path)


def _within(value: Any, allowed: Range | None, path: str) -> Any:
  if allowed is None or value in allowed:
    return value
  note = ""
  if isinstance(value, float) and allowed.low <= value <= allowed.high:
    if value not in allowed.without:
      note = f" (as float32 it is {_float32(value):g})"
  raise InputError(f"{path}={shown(value)} must be {allowed}{note}")


def shown(value: Any) -> str:
  """A value for an error message, on one line of at most 80 characters.

  >>> shown(0.5), shown(10 ** 5000)
  ('0.5', 'a whole number of 16610 bits')
  """
  try:
    return f"{value!r:.80}"
  except ValueError:  # Python prints no number of more than 4,300 digits
    return f"a whole number of {value.bit_length()} bits"
  except RecursionError:
    return "something nested too deeply"


def checked(fn: Callable[P, T]) -> Callable[P, T]:
  """`fn`, which checks its arguments against their ranges when called."""
  signature = inspect.signature(fn)

  @functools.wraps(fn)
  def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
    for name, value in signature.bind(*args, **kwargs).arguments.items():
      _check(value, signature.parameters[name].annotation, f"{fn.__name__}.{name}")
    return fn(*args, **kwargs)

  return wrapped
