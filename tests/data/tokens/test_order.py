"""Which row is where: a permutation, and shares that are exact."""

import collections

import numpy as np
import pytest
from scipy import stats

from gen_jax import types
from gen_jax.data.tokens import order


@pytest.mark.parametrize("size", [1, 2, 17, 1000, 4096, 4097, 10_000])
def test_every_epoch_is_a_permutation_and_another_one(size):
  epochs = [
    [order.permuted(epoch * size + i, size, seed=5) for i in range(size)]
    for epoch in range(2)
  ]
  for epoch in epochs:
    assert sorted(epoch) == list(range(size))
  assert size < 5 or epochs[0] != epochs[1]


@pytest.mark.parametrize("size", [50, 5000])
def test_seeds_and_stores_have_permutations_of_their_own(size):
  found = {
    tuple(order.permuted(i, size, seed, store) for i in range(20))
    for seed in range(3)
    for store in range(2)
  }
  assert len(found) == 6


# Sizes of both sides of `order._FEW`; bounds of p hold once in 10,000 tests of a
# uniform permutation, and the seeds are fixed.
SIZES = [256, 8192, 10**9]


def is_uniform(values, size):
  """Whether values [n] fall evenly into 16 equal parts of [0, size)."""
  counts = np.bincount(np.asarray(values) * 16 // size, minlength=16)
  return stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("size", SIZES)
def test_a_place_holds_each_value_equally_often(size):
  """Over 2,000 seeds, at the first, a middle and the last place."""
  for place in (0, size // 3, size - 1):
    found = [order.permuted(place, size, seed) for seed in range(2000)]
    assert is_uniform(found, size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", [1, 2, "epoch"])
def test_neighbours_and_epochs_are_independent(size, step):
  """Differences modulo the size are uniform."""
  step = size if step == "epoch" else step
  pairs = [
    (order.permuted(7, size, seed), order.permuted(7 + step, size, seed))
    for seed in range(2000)
  ]
  first, second = np.array(pairs).T
  assert is_uniform((second - first) % size, size)
  assert stats.kendalltau(first, second).pvalue > 1e-4


@pytest.mark.parametrize("size", SIZES[1:])
def test_what_is_read_first_is_spread_over_the_corpus(size):
  """The first 2,000 rows: Kolmogorov-Smirnov, and no trend in their order."""
  found = np.array([order.permuted(i, size, seed=1) for i in range(2000)])
  assert stats.kstest(found / size, "uniform").pvalue > 1e-4
  assert stats.kendalltau(np.arange(2000), found).pvalue > 1e-4


STAGES = [
  order.Stage(0, (0.7, 0.2, 0.1)),
  order.Stage(10_000, (0.0, 1.0, 2.0)),
  order.Stage(10_007, (1.0, 1.0, 1.0)),
]


def test_rows_of_a_store_are_counted_one_by_one():
  """Over stages that end inside a window: no row is left out, and none comes twice."""
  mixture, seen = order.Mixture(STAGES), collections.Counter()
  rows = np.arange(16_000)
  for store, before in zip(*mixture.at(rows), strict=True):
    assert before == seen[store]
    seen[store] += 1


def test_shares_are_exact_in_every_window_and_near_it_inside():
  mixture = order.Mixture(STAGES[:1])
  stores = np.array(mixture.at(np.arange(2 * order.WINDOW))[0])
  for window in stores.reshape(2, -1):
    counts = np.bincount(window, minlength=3)
    np.testing.assert_array_equal(counts, order.quotas((0.7, 0.2, 0.1)))
    np.testing.assert_allclose(counts / order.WINDOW, (0.7, 0.2, 0.1), atol=1 / 4096)
  shares = np.cumsum(stores[:, None] == np.arange(3), axis=0)
  exact = np.arange(1, len(stores) + 1)[:, None] * (counts / order.WINDOW)
  assert np.abs(shares - exact).max() < 3


def test_a_change_of_weights_holds_from_its_row_on():
  mixture = order.Mixture(STAGES)
  assert 0 not in mixture.at(np.arange(10_000, 10_007))[0]
  later = mixture.at(np.arange(10_007, 10_007 + 3 * 99))[0]
  np.testing.assert_allclose(np.bincount(later), 99, atol=1)


@pytest.mark.parametrize(
  ("weights", "says"),
  [
    ((1.0, -1.0), "at least 0"),
    ((0.0, 0.0), "one must be above 0"),
    ((1.0, 1e-6), "less than one row in 4096"),
  ],
)
def test_weights_that_cannot_be(weights, says):
  with pytest.raises(types.InputError, match=says):
    order.quotas(weights)


def test_stages_rise_from_0():
  for starts in ((1,), (0, 5, 5), (0, 7, 3)):
    with pytest.raises(types.InputError, match="must rise from 0"):
      order.Mixture([order.Stage(start, (1.0,)) for start in starts])
