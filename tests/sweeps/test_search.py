"""Searches: what is drawn, that the past alone decides, that the best is found."""

import collections
import itertools
import math

import numpy as np
import pytest

from gen_jax.sweeps import choice, integers, log_uniform, search, uniform
from gen_jax.types import InputError

SPACE = {"x": uniform(-1, 1), "rate": log_uniform(1e-4, 1e-1), "fixed": 7}


def draws(method, num, space=SPACE, seed=0):
  return list(itertools.islice(search.stream(space, method, seed), num))


@pytest.mark.parametrize("method", ["halton", "random"])
def test_a_stream_is_a_function_of_its_seed_and_fills_the_space(method):
  few, many = draws(method, 3), draws(method, 200)
  assert many[:3] == few and draws(method, 3, seed=1) != few
  assert all(arm["fixed"] == 7 and -1 <= arm["x"] <= 1 for arm in many)
  rates = np.log10([arm["rate"] for arm in many])
  counts = np.histogram(rates, bins=[-4, -3, -2, -1])[0]
  assert min(counts) > 45, counts  # of 200 / 3; equal chances for equal ratios


def test_halton_leaves_no_gap():
  """The first 64 points lie in all 16 cells of a 4 x 4 grid; random ones need not."""
  cells = collections.Counter(
    (int((arm["x"] + 1) * 2), int((math.log10(arm["rate"]) + 4) / 0.75))
    for arm in draws("halton", 64)
  )
  assert len(cells) == 16 and min(cells.values()) >= 2


def test_values_are_short_and_inside():
  for arm in draws(
    "random", 300, {"x": uniform(0.12345, 0.12346), "n": integers(3, 5)}
  ):
    assert 0.12345 <= arm["x"] <= 0.12346 and arm["n"] in (3, 4, 5)
  assert {arm["n"] for arm in draws("random", 50, {"n": integers(3, 5)})} == {3, 4, 5}
  assert len(repr(log_uniform(1e-5, 1).at(0.123456))) <= 9


@pytest.mark.parametrize("method", search.METHODS)
def test_the_past_alone_decides(method):
  """Asked in parts or again, with the same past, the same arms come."""
  tried = []
  for num in (5, 5, 1, 3):
    new = search.propose(SPACE, method, 3, tried, num)
    assert new == search.propose(SPACE, method, 3, list(tried), num)
    tried += [(arm, (arm["x"] - 0.3) ** 2) for arm in new]
  assert len(tried) == 14 and len({repr(arm) for arm, _ in tried}) == 14
  if method != "tpe":
    assert [arm for arm, _ in tried] == search.propose(SPACE, method, 3, (), 14)
  else:  # which learns: another past, other arms
    other = [(arm, -cost) for arm, cost in tried]
    assert search.propose(SPACE, method, 3, other, 1) != search.propose(
      SPACE, method, 3, tried, 1
    )


def test_tpe_finds_a_planted_optimum_that_random_draws_miss():
  def cost(arm):
    return (arm["x"] - 0.3) ** 2 + (math.log10(arm["rate"]) + 2.5) ** 2

  def best(method, seed):
    tried = []
    while len(tried) < 60:
      new = search.propose(SPACE, method, seed, tried, 1 if method == "tpe" else 60)
      tried += [(arm, cost(arm)) for arm in new]
    return min(cost for _, cost in tried)

  tpe = [best("tpe", seed) for seed in range(5)]
  random = [best("random", seed) for seed in range(5)]
  assert np.median(tpe) < 0.2 * np.median(random), (tpe, random)


def test_diverged_and_unknown_arms_are_no_guides():
  """A third of the rates diverges: TPE seldom goes there again."""
  late = []
  for seed in range(3):
    tried = []
    while len(tried) < 60:
      for arm in search.propose(SPACE, "tpe", seed, tried, 2):
        has_diverged = arm["rate"] > 1e-2
        cost = math.inf if has_diverged else None if len(tried) % 9 == 0 else arm["x"]
        tried.append((arm, cost))
    late += [arm["rate"] > 1e-2 for arm, _ in tried[20:]]
  assert sum(late) < 0.2 * len(late), sum(late)


def test_choices_of_any_kind():
  space = {"a": choice(None, (1, 2), "b", True), "b": choice("p", "q", "r", "s")}
  tried = []
  assert search.size(space) == 16 and search.size(SPACE) == math.inf
  while len(tried) < 16:
    new = search.propose(space, "tpe", 0, tried, 2)
    tried += [(arm, 0.0 if arm["a"] == (1, 2) else 1.0) for arm in new]
  assert len({repr(arm) for arm, _ in tried}) == 16
  with pytest.raises(InputError, match="no more than 16 arms"):
    search.propose(space, "tpe", 0, tried, 1)


def test_the_edge_of_a_range_is_seen():
  rate = log_uniform(1e-4, 1e-1)
  assert [rate.is_edge(x) for x in (1e-4, 1.1e-4, 2e-4, 5e-2, 9.9e-2)] == [
    *(True, True, False, False, True)
  ]
  assert not choice(1, 2).is_edge(1)


def test_rungs():
  assert search.rungs(81, 3) == (9, 27, 81)
  assert search.rungs(100, 2) == (25, 50, 100)
  with pytest.raises(InputError, match="at least 9; it is 8"):
    search.rungs(8, 3)
  with pytest.raises(InputError, match="--halving 1 must be at least 2"):
    search.rungs(8, 1)


@pytest.mark.parametrize(
  "make, says",
  [
    (lambda: uniform(1, 1), "low < high; it has low=1"),
    (lambda: uniform(0, math.inf), "two numbers"),
    (lambda: uniform("a", "b"), "two numbers"),
    (lambda: log_uniform(0, 1), "0 < low < high"),
    (lambda: integers(1, 2.5), "two whole numbers"),
    (lambda: choice("a"), "two values at least"),
    (lambda: search.ranges([1]), "must return a dict"),
    (lambda: search.ranges({"a": 1}), "nothing to search"),
    (lambda: search.ranges({"seed": integers(0, 9)}), "only the luckiest"),
    (lambda: search.propose(SPACE, "tpa", 0, (), 1), "did you mean 'tpe'"),
  ],
)
def test_bad_searches(make, says):
  with pytest.raises(InputError, match=says):
    make()
