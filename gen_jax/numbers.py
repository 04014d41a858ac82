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
import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

Numbers = Mapping[str, Any]  # by name: float or int, or 32-bit [] arrays of these
_UFUNCS = {np.cos: "cos", np.sin: "sin", np.sqrt: "sqrt", np.log: "log", np.exp: "exp"}


def plain(number: float | int) -> float | int:
  """The number without its name."""
  return float(number) if isinstance(number, float) else int(number)


# What a number is where it meets an array.
_meets: contextvars.ContextVar[Callable[[Any], Any]] = contextvars.ContextVar(
  "meets", default=plain
)


def named(value: float | int, name: str) -> float | int:
  """`value` as a number of this name.

  >>> half = named(0.5, "a")
  >>> half, (1 - half / 4).name
  (0.5, '(1 - (a / 4))')
  """
  return (_Float if isinstance(value, float) else _Int)(value, name)


def _derived(
  function: Callable[..., Any], words: str, *operands: float | int
) -> float | int:
  """function(*operands), named by its words, in which `{}` stand for their names."""
  names = (getattr(x, "name", x) for x in operands)
  return named(function(*map(plain, operands)), words.format(*names))


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

  array = None  # what it is, where `jax.jit` and its like have made an array of it

  def __new__(cls, value: float | int, name: str):
    self = super().__new__(cls, value)
    self.name = name
    return self

  def __getnewargs__(self):
    return plain(self), self.name

  def __jax_array__(self):
    return _meets.get()(self) if self.array is None else self.array

  def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
    if ufunc in _UFUNCS and inputs == (self,) and not kwargs:
      return _derived(lambda x: float(ufunc(x)), f"{_UFUNCS[ufunc]}({{}})", self)
    inputs = (plain(x) if isinstance(x, _Number) else x for x in inputs)
    return getattr(ufunc, method)(*inputs, **kwargs)

  __neg__ = _unary(operator.neg, "-{}")
  __abs__ = _unary(abs, "abs({})")

  def __round__(self, digits: int | None = None):
    return _derived(lambda x: round(x, digits), "round({})", self)

  for _name, _symbol in (
    *(("add", "+"), ("sub", "-"), ("mul", "*"), ("truediv", "/")),
    *(("floordiv", "//"), ("mod", "%"), ("pow", "**")),
  ):
    vars()[f"__{_name}__"] = _binary(getattr(operator, _name), _symbol)
    vars()[f"__r{_name}__"] = _binary(getattr(operator, _name), _symbol, swapped=True)
  del _name, _symbol


class _Float(_Number, float):
  pass


class _Int(_Number, int):
  pass


def _flatten(number):
  return (number.__jax_array__(),), (plain(number), number.name)


def _unflatten(known, leaves):
  number = named(*known)
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


def found(fn: Callable[..., Any], *args: Any) -> dict[str, float | int]:
  """The numbers that meet an array in fn(*args), traced; args may be abstract.

  >>> x, rate = jax.ShapeDtypeStruct((2,), "float32"), named(0.5, "rate")
  >>> found(lambda x: x * (1 - rate) if rate > 0 else x, x)
  {'(1 - rate)': 0.5}
  """
  numbers: dict[str, float | int] = {}

  def meets(number):
    value = plain(number)
    if numbers.setdefault(number.name, value) != value:
      raise ValueError(f"{number.name} is {value} and {numbers[number.name]}")
    return value

  with _meeting(meets):
    jax.eval_shape(lambda *args: fn(*args), *args)  # a new function: nothing is cached
  return numbers


def rounded(numbers: Numbers) -> Numbers:
  """Floats rounded to float32: processes that share them compare every bit."""
  return {
    name: float(np.float32(value)) if isinstance(value, float) else value
    for name, value in numbers.items()
  }


def jit(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
  """jax.jit(fn), whose numbers are arguments of its program.

  Args:
    options: of `jax.jit`.
  """

  def program(*args, numbers, **kwargs):
    with given(numbers):
      return fn(*args, **kwargs)

  program = jax.jit(functools.wraps(fn)(program), **options)
  numbers: Numbers | None = None

  @functools.wraps(fn)
  def call(*args, **kwargs):
    nonlocal numbers
    if numbers is None:
      numbers = found(functools.partial(fn, **kwargs), *args)
    return program(*args, numbers=numbers, **kwargs)

  return call
