"""Numbers of a config as arguments of compiled programs.

Two runs that differ in a learning rate have one program, if the rate is an argument of
it and no constant. Such numbers are named after their place in the config:

    b2 = named(0.95, "optimizer.b2")
    b2 > 0        True: what decides on the structure of a program stays Python's
    1 - b2        the float 0.05, in double precision, named "(1 - optimizer.b2)"
    b2 * array    where a program is traced under `given`: its argument "optimizer.b2"
                  times the array; elsewhere the constant 0.95 times the array

`found` traces a function and says which numbers its program takes: those that meet an
array, each under the name it has there. A number that turns into a shape, a table or a
branch in Python meets none, and so is part of the program's structure. So is what loses
its name: float(x), math.sqrt(x), and 0.5 * n, since a float takes a whole number for an
int (n * 0.5 keeps it).

A program with arguments may differ in last bits from one with constants: XLA folds
those, x / c to x (1 / c), c (d x) to (c d) x, and a product with 1 to its factor.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

Number = TypeVar("Number", int, float)
Numbers = Mapping[str, Any]  # by name: float or int, or 32-bit [] arrays of these
_UFUNCS = {np.cos: "cos", np.sin: "sin", np.sqrt: "sqrt", np.log: "log", np.exp: "exp"}


def plain(number: Any) -> Any:
  """A float or int without its name."""
  kind = float if isinstance(number, float) else int
  return getattr(kind, f"__{kind.__name__}__")(number)


# What a number is where it meets an array.
_meets: contextvars.ContextVar[Callable[[Any], Any]] = contextvars.ContextVar(
  "meets", default=plain
)


def named(value: Number, name: str) -> Number:
  """`value` as a number of this name.

  >>> half = named(0.5, "a")
  >>> half, (1 - half / 4).name
  (0.5, '(1 - (a / 4))')
  """
  return _named(value, name)  # type: ignore[return-value]  # a subclass of its type


def _named(value: float | int, name: str) -> "_Float | _Int":
  number = _Float(value) if isinstance(value, float) else _Int(value)
  number.name = name
  return number


def _derived(
  function: Callable[..., Any], words: str, *operands: Any
) -> "_Float | _Int":
  """function(*operands), named by its words, in which `{}` stand for their names."""
  names = (getattr(x, "name", x) for x in operands)
  number = _named(function(*map(plain, operands)), words.format(*names))
  number.made = function, operands
  return number


def under(number: float | int, values: Numbers) -> float | int:
  """What a number is where those of the config are `values`, bit for bit.

  Args:
    values: of numbers that are not derived from others, by name.

  >>> half = named(0.5, "a")
  >>> under(1 - half / 4, {"a": 2.0})
  0.5

  Raises:
    KeyError: it depends on a number without a value.
  """
  if not isinstance(number, _Number):
    return number
  if number.made is None:
    return type(plain(number))(values[number.name])
  function, operands = number.made
  return function(*(under(x, values) for x in operands))


class Decision(NamedTuple):
  """What Python was told of numbers, on which the structure of a program may depend."""

  function: Callable[..., Any]
  operands: tuple[Any, ...]
  result: Any

  def holds(self, values: Numbers) -> bool:
    """Whether numbers of these values give the same; see `under`."""
    return self.function(*(under(x, values) for x in self.operands)) == self.result


_decisions: contextvars.ContextVar[list[Decision] | None] = contextvars.ContextVar(
  "decisions", default=None
)


@contextlib.contextmanager
def deciding() -> Iterator[list[Decision]]:
  """Yields a list that gets every decision taken within, by comparison or conversion.

  What C code reads of a number (math.sqrt, numpy) is none of them.
  """
  found: list[Decision] = []
  token = _decisions.set(found)
  try:
    yield found
  finally:
    _decisions.reset(token)


def _deciding(function: Callable[..., Any]):
  def decide(self, *others):
    operands = (self, *others)
    if not all(isinstance(x, int | float) for x in others):
      return NotImplemented
    result = function(*map(plain, operands))
    if (decisions := _decisions.get()) is not None:
      decisions.append(Decision(function, operands, result))
    return result

  return decide


def _binary(function: Callable[..., Any], symbol: str, *, swapped: bool = False):
  words = f"({{}} {symbol} {{}})"

  def apply(self, other):
    if isinstance(other, bool) or not isinstance(other, int | float):
      return NotImplemented
    operands = (other, self) if swapped else (self, other)
    return _derived(function, words, *operands)

  return apply


def _unary(function: Callable[..., Any], words: str):
  def apply(self):
    return _derived(function, words, self)

  return apply


class _Number:
  """What named floats and ints have in common."""

  name: str
  array: Any = None  # where `jax.jit` and its like have made an array of it
  made: tuple[Callable[..., Any], tuple[Any, ...]] | None = None  # of other numbers

  def __jax_array__(self):
    return _meets.get()(self) if self.array is None else self.array

  def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
    if ufunc in _UFUNCS and inputs == (self,) and not kwargs:
      return _derived(lambda x: float(ufunc(x)), f"{_UFUNCS[ufunc]}({{}})", self)
    bare = (plain(x) if isinstance(x, _Number) else x for x in inputs)
    return getattr(ufunc, method)(*bare, **kwargs)

  __neg__ = _unary(operator.neg, "-{}")
  __abs__ = _unary(abs, "abs({})")

  def __round__(self, digits=None):
    more = "" if digits is None else f", {digits}"
    return _derived(lambda x: round(x, digits), f"round({{}}{more})", self)

  for _name, _symbol in (
    *(("add", "+"), ("sub", "-"), ("mul", "*"), ("truediv", "/")),
    *(("floordiv", "//"), ("mod", "%"), ("pow", "**")),
  ):
    vars()[f"__{_name}__"] = _binary(getattr(operator, _name), _symbol)
    vars()[f"__r{_name}__"] = _binary(getattr(operator, _name), _symbol, swapped=True)
  for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    vars()[f"__{_name}__"] = _deciding(getattr(operator, _name))
  for _name, _function in (
    *(("bool", bool), ("int", int), ("trunc", math.trunc)),
    *(("floor", math.floor), ("ceil", math.ceil)),
  ):
    vars()[f"__{_name}__"] = _deciding(_function)
  del _name, _symbol, _function


class _Float(_Number, float):
  __hash__ = float.__hash__


class _Int(_Number, int):
  __hash__ = int.__hash__


def _flatten(number):
  return (number.__jax_array__(),), (plain(number), number.name)


def _unflatten(known, leaves):
  number = _named(*known)
  if isinstance(leaves[0], jax.Array):
    number.array = leaves[0]
  return number


for _kind in (_Float, _Int):
  jax.tree_util.register_pytree_node(_kind, _flatten, _unflatten)


@contextlib.contextmanager
def _meeting(meets: Callable[[Any], Any]) -> Iterator[None]:
  token = _meets.set(meets)
  try:
    yield
  finally:
    _meets.reset(token)


@contextlib.contextmanager
def given(numbers: Numbers) -> Iterator[None]:
  """Within, a number that is named in `numbers` meets arrays as what it is there."""
  outer = _meets.get()

  def meets(number):
    return numbers[number.name] if number.name in numbers else outer(number)

  with _meeting(meets):
    yield


@contextlib.contextmanager
def constant() -> Iterator[None]:
  """Within, all numbers are constants."""
  with _meeting(plain):
    yield


def met(fn: Callable[..., Any], *args: Any) -> dict[str, Any]:
  """The named numbers that meet an array in fn(*args), traced; args may be abstract.

  `arguments` makes of them what the program takes.
  """
  numbers: dict[str, Any] = {}

  def meets(number):
    value = plain(number)
    if plain(numbers.setdefault(number.name, number)) != value:
      raise ValueError(f"{number.name} is {value} and {numbers[number.name]}")
    return value

  with _meeting(meets):
    jax.eval_shape(lambda *args: fn(*args), *args)  # a new function: nothing is cached
  return numbers


def arguments(numbers: Numbers, values: Numbers | None = None) -> dict[str, Any]:
  """What a program takes for numbers that `met` has found.

  Args:
    values: of another config than that they are of, see `under`.
  """
  return {
    name: plain(number if values is None else under(number, values))
    for name, number in numbers.items()
  }


def found(fn: Callable[..., Any], *args: Any) -> dict[str, Any]:
  """The numbers that a program of fn(*args) takes; args may be abstract.

  >>> x, rate = jax.ShapeDtypeStruct((2,), "float32"), named(0.5, "rate")
  >>> found(lambda x: x * (1 - rate) if rate > 0 else x, x)
  {'(1 - rate)': 0.5}
  """
  return arguments(met(fn, *args))


def rounded(numbers: Numbers) -> Numbers:
  """Floats rounded to float32: processes that share them compare every bit."""
  return {
    name: float(np.float32(value)) if isinstance(value, float) else value
    for name, value in numbers.items()
  }


@dataclasses.dataclass(frozen=True, eq=False)
class Jitted:
  """A function that `jit` has compiled, called as the function is.

  Attributes:
    fn: the function.
    program: of the same arguments and `numbers`.
    values: see `arguments`.
  """

  fn: Callable[..., Any]
  program: Callable[..., Any]
  values: Numbers | None = None
  _met: list[Numbers] = dataclasses.field(default_factory=list)  # once it was called

  def __call__(self, *args, **kwargs):
    if not self._met:
      self._met.append(met(functools.partial(self.fn, **kwargs), *args))
    numbers = arguments(self._met[0], self.values)
    return self.program(*args, numbers=numbers, **kwargs)

  def under(self, values: Numbers | None) -> "Jitted":
    """The same program with the numbers of another config."""
    return dataclasses.replace(self, values=values)


def jit(fn: Callable[..., Any], **options: Any) -> Jitted:
  """jax.jit(fn), whose numbers are arguments of its program.

  Args:
    options: of `jax.jit`.
  """

  def program(*args, numbers, **kwargs):
    with given(numbers):
      return fn(*args, **kwargs)

  return Jitted(fn, jax.jit(functools.wraps(fn)(program), **options))
