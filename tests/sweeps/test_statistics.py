"""Intervals hold the truth as often as they say; p-values of nothing are uniform."""

import numpy as np
import pytest
from scipy import stats

from gen_jax.sweeps import statistics
from gen_jax.types import InputError

TRIALS = 4_000


def coverage(interval, num, trials=TRIALS):
  draws = np.random.default_rng(0).normal(3.0, 2.0, (trials, num))
  found = [interval(row) for row in draws]
  return np.mean([low <= 3.0 <= high for low, high in found])


@pytest.mark.parametrize("num", [2, 3, 5])
def test_intervals_over_seeds_cover_as_they_say(num):
  def t(row):
    return statistics.over_seeds(row)[1:3]

  assert abs(coverage(t, num) - 0.95) < 0.015


@pytest.mark.parametrize("num", [1, 3])
def test_the_mean_of_further_runs_is_where_it_is_predicted(num):
  generator, hits = np.random.default_rng(6), 0
  for _ in range(TRIALS):
    band = statistics.predicted(generator.normal(0.0, 2.0, 3), num)
    hits += band.low <= generator.normal(0.0, 2.0, num).mean() <= band.high
  assert abs(hits / TRIALS - 0.95) < 0.015


def test_the_normal_interval_would_fail_the_same_test():
  def normal(row):
    half = 1.96 * stats.sem(row)
    return row.mean() - half, row.mean() + half

  assert coverage(normal, 3) < 0.85


@pytest.mark.parametrize("compare", [statistics.paired, statistics.unpaired])
def test_p_values_of_self_comparisons_are_uniform(compare):
  draws = np.random.default_rng(1).normal(0.0, 1.0, (2_000, 2, 4))
  pvalues = [compare(a, b).p for a, b in draws]
  if compare is statistics.paired:
    assert stats.kstest(pvalues, "uniform").pvalue > 0.01
  else:  # Welch's is a little conservative at n = 4
    assert np.mean(np.array(pvalues) < 0.05) <= 0.055


def test_common_seeds_take_their_noise_out():
  generator = np.random.default_rng(2)
  noise, own = generator.normal(0, 1, 5), generator.normal(0, 0.01, (2, 5))
  a, b = noise + own[0], noise + own[1] + 0.1
  assert statistics.paired(a, b).p < 1e-3 < statistics.unpaired(a, b).p
  assert statistics.paired(a, b).interval.mean == pytest.approx(
    statistics.unpaired(a, b).interval.mean
  )


def test_paired_is_the_t_interval_of_the_differences():
  a, b = np.array([1.0, 2.0, 4.0]), np.array([1.5, 2.1, 4.9])
  found = statistics.paired(a, b)
  assert found.interval == statistics.over_seeds(b - a)
  edge = stats.t.ppf(1 - found.p / 2, 2)
  low = found.interval.mean - edge * stats.sem(b - a)
  assert low == pytest.approx(0.0, abs=1e-12)  # the interval of level 1 - p ends at 0


def test_equal_runs_differ_in_nothing():
  found = statistics.paired([1.0, 2.0], [1.0, 2.0])
  assert (found.p, found.interval.mean) == (1.0, 0.0)
  assert statistics.paired([1.0, 2.0], [1.5, 2.5]).p == 0.0


def test_the_bootstrap_over_examples_covers_skewed_losses():
  generator, hits, trials = np.random.default_rng(3), 0, 150
  for seed in range(trials):
    counts = generator.integers(1, 50, 120).astype(float)
    delta = counts * (0.2 + generator.exponential(1.0, 120) - 1.0)
    found = statistics.over_examples(np.zeros(120), delta, counts, seed=seed)
    hits += found.low <= 0.2 <= found.high
  assert abs(hits / trials - 0.95) < 0.06


def test_means_over_examples_weigh_by_counts():
  a, b = np.array([1.0, 8.0, 3.0]), np.array([2.0, 4.0, 3.5])
  counts = np.array([1.0, 8.0, 2.0])
  found = statistics.over_examples(a, b, counts)
  assert found.mean == pytest.approx((b.sum() - a.sum()) / counts.sum())
  shift = statistics.over_examples(a, a + 0.5 * counts, counts)
  assert (shift.low, shift.high) == (pytest.approx(0.5), pytest.approx(0.5))


def test_power_is_what_simulation_finds():
  effect, num = 1.2, 6
  draws = np.random.default_rng(4).normal(effect, 1.0, (4_000, num))
  found = np.mean(stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05)
  assert statistics.power(effect, num) == pytest.approx(found, abs=0.02)


def test_seeds_needed_is_the_least_number_with_that_power():
  a, b = [0.0, 0.0, 0.0, 0.0], [0.2, 1.4, 0.7, 1.1]
  effect = np.mean(b) / np.std(b, ddof=1)
  num = statistics.seeds_needed(a, b)
  assert statistics.power(effect, num) >= 0.8 > statistics.power(effect, num - 1)
  assert statistics.seeds_needed([0.0, 0.0], [1.0, -1.0 + 1e-9]) is None


def test_adjusting_keeps_order_and_never_helps():
  pvalues = np.random.default_rng(5).uniform(0, 1, 20)
  found = np.array(statistics.adjusted(pvalues))
  assert np.all(found >= pvalues)
  assert np.all(np.diff(found[np.argsort(pvalues)]) >= 0)
  assert statistics.adjusted([]) == []


@pytest.mark.parametrize(
  "call, says",
  [
    (lambda: statistics.over_seeds([1.0]), "at least 2 seeds"),
    (lambda: statistics.over_seeds([1.0, float("nan")]), "finite"),
    (lambda: statistics.paired([1.0, 2.0], [1.0, 2.0, 3.0]), "same seeds"),
    (lambda: statistics.over_examples(*[np.ones(1)] * 3), "at least two"),
  ],
)
def test_bad_input(call, says):
  with pytest.raises(InputError, match=says):
    call()


def test_words_and_digits():
  interval = statistics.Interval(1.80412, 1.80112, 1.80712, 5)
  assert str(interval) == "1.8041 ± 0.0030"
  none = statistics.Difference(statistics.Interval(0.1, -0.1, 0.3, 3), 0.2, True)
  some = statistics.Difference(statistics.Interval(-0.1, -0.2, -0.05, 3), 0.01, True)
  assert "no difference shown" in statistics.in_words(none)
  assert statistics.in_words(some, "muon").startswith("muon is lower: -0.100 ± 0.075")
