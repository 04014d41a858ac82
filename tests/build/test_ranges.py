"""No number of a config goes without a range, and none beyond it is taken."""

import inspect
import math
import typing

import pytest

from gen_jax import build, ranges
from gen_jax.diffusion import corrupt
from gen_jax.train import loop, optim
from gen_jax.types import InputError

KEYS = {
  f"{kind}.{name}.{key}": (kind, name, key, parameter)
  for kind, table in build.TABLES.items()
  for name, entry in table.items()
  for key, parameter in entry.keys().items()
}
NUMBERS = {path: key for path, key in KEYS.items() if ranges.of(key[3].annotation)}


def outside(number, allowed):
  """Values of the right type that are not in a range."""
  yield from allowed.without
  if number is int:
    yield from (int(allowed.low) - 1, int(allowed.high) + 1, 2**63, 10**400, -(10**400))
  else:
    yield from (math.nan, math.inf, -math.inf, 1e400, 1e39)
    for end, away in ((allowed.low, -1.0), (allowed.high, 1.0)):
      if abs(end) < 1e30:
        yield from (end + away, math.nextafter(end, end + away))


def test_every_number_has_a_range():
  assert len(NUMBERS) > 150
  for path, (_, _, _, parameter) in NUMBERS.items():
    assert all(allowed for _, allowed in ranges.of(parameter.annotation)), path


def tuples(hint):
  """How many tuples deep the numbers of a hint are."""
  for option in ranges.options(hint):
    if typing.get_origin(option) is tuple:
      return 1 + tuples(typing.get_args(option)[0])
  return 0


@pytest.mark.parametrize("path", NUMBERS)
def test_values_beyond_a_range_are_refused_by_path_value_and_rule(path):
  kind, name, key, parameter = NUMBERS[path]
  depth = tuples(parameter.annotation)
  for number, allowed in ranges.of(parameter.annotation):
    for value in outside(number, allowed):
      given = value
      for _ in range(depth):
        given = (given,) * 2
      block, where = {"name": name, key: given}, f"here.{key}" + "[0]" * depth
      with pytest.raises(InputError) as caught:
        build.check(kind, block, "here")
      message = str(caught.value)
      assert message.startswith(f"{where}={ranges.shown(value)} must be {allowed}")
      assert "\n" not in message and len(message) < 250


@pytest.mark.parametrize("path", NUMBERS)
def test_defaults_and_ends_are_taken(path):
  """A range is not narrower than it says, and not than its own default."""
  *_, key, parameter = NUMBERS[path]
  default = parameter.default
  if default not in (inspect.Parameter.empty, None):
    assert ranges.typed(default, parameter.annotation, key) == default
  for number, allowed in ranges.of(parameter.annotation):
    for end in (allowed.low, allowed.high):
      if end not in allowed.without:
        assert number(end) in allowed


@pytest.mark.parametrize(
  "value, rule",
  [
    (1.0 - 1e-9, "in [0, 1) (as float32 it is 1)"),
    (-1e-300, "in [0, 1)"),
    (1e-60, None),
  ],
)
def test_floats_are_held_to_their_range_as_float32(value, rule):
  """1 - 1e-9 is below 1, but not where it is used."""
  if rule is None:
    assert ranges.typed(value, ranges.ProperFraction, "x") == value
    return
  with pytest.raises(InputError, match="must be") as caught:
    ranges.typed(value, ranges.ProperFraction, "x")
  assert str(caught.value).endswith(rule)


def test_a_positive_number_that_float32_rounds_to_nothing_is_refused():
  with pytest.raises(
    InputError, match=r"more than 0 and finite \(as float32 it is 0\)"
  ):
    ranges.typed(1e-60, ranges.Positive, "eps")


@pytest.mark.parametrize(
  "make, says",
  [
    (lambda: optim.adamw(optim.constant(1.0, 1), b2=1.0), r"adamw.b2=1.0 must be in"),
    (lambda: optim.constant(-1.0, 1), r"constant.peak=-1.0 must be at least 0"),
    (lambda: loop.Config(num_steps=0), r"Config.num_steps=0 must be at least 1"),
    (lambda: loop.Config(1, num_epochs=math.inf), r"Config.num_epochs=inf"),
    (lambda: corrupt.UniformTime(t_min=1.5), r"UniformTime.t_min=1.5 must be in"),
    (lambda: corrupt.UniformTime(0.6, 0.5), r"t_min=0.6 must be at most t_max=0.5"),
  ],
)
def test_python_is_held_to_the_same_ranges(make, says):
  with pytest.raises(InputError, match=says):
    make()


def test_whole_numbers_too_large_for_a_float_are_infinite():
  with pytest.raises(InputError, match="x=inf must be more than 0 and finite"):
    ranges.typed(10**400, ranges.Positive, "x")


def test_blocks_nested_without_end_are_refused():
  block = {"name": "rectified_flow"}
  for _ in range(5000):
    block = {"name": "shift", "factor": 2.0, "schedule": block}
  for act in (build.check, build.build):
    with pytest.raises(InputError, match="nested too deeply"):
      act("schedule", block, "task.schedule")
