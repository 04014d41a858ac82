"""Values of foreign configs, judged before anything is built from them."""

from typing import Any

from gen_jax import build
from gen_jax.types import InputError

_MAX_SIZE = 2**31  # no published number of layers, width or length comes near


def typed(value: Any, hint: Any, where: str) -> Any:
  """`build.typed`; also: whole numbers in [1, 2^31), others finite.

  Every whole number that is read from a foreign config is a size or a count.

  Raises:
    InputError: another type, or a number that no model has.
  """
  numbers = value if isinstance(value, list | tuple) else [value]
  for number in numbers:
    is_size = type(number) is int
    if is_size and not 1 <= number < _MAX_SIZE and hint is not float:
      raise InputError(f"{where}={number!r:.60} must be a size in [1, 2^31)")
    if isinstance(number, int | float) and not abs(number) < 1e30:  # NaN as well
      raise InputError(f"{where}={number!r:.60} must be a finite number")
  return build.typed(value, hint, where)
