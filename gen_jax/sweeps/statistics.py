"""Intervals and comparisons of runs: what a difference between configs is worth.

Over seeds: Student's t, which covers as it says from two seeds on; 1.96 standard errors
or a percentile bootstrap of three seeds cover 75 to 82 % where they say 95. Over
validation examples of one trained model: the bias-corrected and accelerated bootstrap,
which says nothing of other seeds. Several comparisons at once are adjusted.

Sources: Student 1908; Welch 1947; Efron 1987 (BCa); Benjamini & Hochberg 1995. All by
scipy.stats.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gen_jax import errors
from gen_jax.types import InputError


def _stats():
  """scipy.stats, which takes a second to import: only where it is needed."""
  with errors.extra("sweeps"):
    from scipy import stats
  return stats


class Interval(NamedTuple):
  """A mean and the interval that holds the true one with probability `level`."""

  mean: float
  low: float
  high: float
  num: int
  level: float = 0.95

  def __str__(self) -> str:
    """The mean with half the interval, to two digits of the latter."""
    half = 0.5 * (self.high - self.low)
    if not math.isfinite(half) or half == 0.0:
      return f"{self.mean:.4g} ± {half:.2g}"
    digits = max(0, 1 - math.floor(math.log10(half)))
    return f"{self.mean:.{digits}f} ± {half:.{digits}f}"


class Difference(NamedTuple):
  """The mean of b - a with its interval, and a two-sided p-value.

  Attributes:
    p: probability of a difference at least as large if there were none.
    is_paired: over the same seeds or examples.
  """

  interval: Interval
  p: float
  is_paired: bool

  def __str__(self) -> str:
    how = "paired" if self.is_paired else "unpaired"
    return f"{self.interval} ({how}, n = {self.interval.num}, p = {self.p:.2g})"


def _checked(values: Sequence[float], name: str, least: int = 2) -> np.ndarray:
  array = np.asarray(values, np.float64)
  if array.ndim != 1 or not np.all(np.isfinite(array)):
    raise InputError(f"{name} must be finite numbers, got {list(values)!r:.80}")
  if len(array) < least:
    raise InputError(
      f"{name}: {len(array)} of at least {least} seeds; an interval needs more runs"
    )
  return array


def over_seeds(values: Sequence[float], level: float = 0.95) -> Interval:
  """Mean and Student's t interval of one number for each seed.

  >>> over_seeds([1.0, 2.0, 3.0]).mean
  2.0

  Raises:
    InputError: fewer than two values, or one that is not finite.
  """
  array = _checked(values, "values")
  num, mean = len(array), float(array.mean())
  half = float(_stats().sem(array)) * float(_stats().t.ppf(0.5 + 0.5 * level, num - 1))
  return Interval(mean, mean - half, mean + half, num, level)


def predicted(values: Sequence[float], num: int, level: float = 0.95) -> Interval:
  """Where the mean of `num` further runs lies with probability `level`.

  Raises:
    InputError: see `over_seeds`.
  """
  array = _checked(values, "values")
  spread = float(np.std(array, ddof=1)) * math.sqrt(1.0 / len(array) + 1.0 / num)
  half = spread * float(_stats().t.ppf(0.5 + 0.5 * level, len(array) - 1))
  mean = float(array.mean())
  return Interval(mean, mean - half, mean + half, len(array), level)


def paired(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Difference:
  """b - a over common seeds, by the t-test of the differences.

  Raises:
    InputError: unequal numbers of values, or see `over_seeds`.
  """
  a, b = _checked(a, "a"), _checked(b, "b")
  if len(a) != len(b):
    raise InputError(f"paired needs the same seeds: {len(a)} of a, {len(b)} of b")
  interval = over_seeds(b - a, level)
  if np.ptp(b - a) == 0.0:  # no spread: equal runs, or a shift of all alike
    return Difference(interval, float(interval.mean == 0.0), True)
  return Difference(interval, float(_stats().ttest_rel(b, a).pvalue), True)


def unpaired(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Difference:
  """b - a of runs with different seeds, by Welch's t-test.

  Raises:
    InputError: see `over_seeds`.
  """
  a, b = _checked(a, "a"), _checked(b, "b")
  mean, num = float(b.mean() - a.mean()), min(len(a), len(b))
  if np.ptp(a) == 0.0 and np.ptp(b) == 0.0:
    return Difference(Interval(mean, mean, mean, num, level), float(mean == 0), False)
  test = _stats().ttest_ind(b, a, equal_var=False)
  low, high = test.confidence_interval(level)
  interval = Interval(mean, float(low), float(high), num, level)
  return Difference(interval, float(test.pvalue), False)


def over_examples(
  a: np.ndarray, b: np.ndarray, counts: np.ndarray, level: float = 0.95, seed: int = 0
) -> Interval:
  """b - a of two trained models, in means per counted unit, over validation examples.

  A paired BCa bootstrap: it speaks of these two models, not of their configs.

  Args:
    a, b: summed losses of each example, float [N].
    counts: units of each example (tokens), float [N], with a positive sum.

  Raises:
    InputError: arrays of other lengths, or fewer than two examples.
  """
  if not len(a) == len(b) == len(counts) >= 2:
    raise InputError(
      f"over_examples needs the same examples, at least two: {len(a)}, {len(b)} and"
      f" {len(counts)} were given"
    )
  delta = np.asarray(b, np.float64) - np.asarray(a, np.float64)
  counts = np.asarray(counts, np.float64)

  def mean(delta, counts, axis=-1):
    return delta.sum(axis) / counts.sum(axis)

  value = float(mean(delta, counts))
  if np.ptp(delta / np.maximum(counts, 1e-300)) == 0.0:
    return Interval(value, value, value, len(delta), level)
  found = (
    _stats()
    .bootstrap(
      (delta, counts),
      mean,
      n_resamples=2_000,
      paired=True,
      vectorized=True,
      confidence_level=level,
      method="BCa",
      rng=np.random.default_rng(seed),
    )
    .confidence_interval
  )
  return Interval(value, float(found.low), float(found.high), len(delta), level)


def adjusted(pvalues: Sequence[float]) -> list[float]:
  """p-values of several comparisons, so that a share of `p` of the findings is false.

  Source: Benjamini & Hochberg 1995.

  >>> adjusted([0.01, 0.02, 0.5])
  [0.03, 0.03, 0.5]
  """
  if not len(pvalues):
    return []
  return _stats().false_discovery_control(pvalues).tolist()


def power(effect: float, num: int, level: float = 0.95) -> float:
  """Probability that `num` pairs find a true difference of `effect` deviations.

  By the noncentral t distribution, two-sided.

  Args:
    effect: true mean difference / standard deviation of the differences.
  """
  stats = _stats()
  edge = stats.t.ppf(0.5 + 0.5 * level, num - 1)
  shift = abs(effect) * math.sqrt(num)
  if shift > edge + 6.0:  # where scipy's noncentral t runs out of digits
    return 1.0
  this, other = (
    stats.nct.sf(edge, num - 1, shift),
    stats.nct.cdf(-edge, num - 1, shift),
  )
  return float(this + np.nan_to_num(other))  # nan: too small for a number


def seeds_needed(
  a: Sequence[float], b: Sequence[float], wanted: float = 0.8, most: int = 1_000
) -> int | None:
  """Pairs of seeds that would find the difference seen; None: over `most`.

  Raises:
    InputError: see `paired`.
  """
  difference = np.asarray(b, np.float64) - np.asarray(a, np.float64)
  paired(a, b)
  spread, mean = float(np.std(difference, ddof=1)), float(difference.mean())
  if spread == 0.0:
    return 2 if mean else None
  low, high = 2, most
  if power(mean / spread, high) < wanted:
    return None
  while low < high:
    middle = (low + high) // 2
    if power(mean / spread, middle) >= wanted:
      high = middle
    else:
      low = middle + 1
  return low


def in_words(difference: Difference, name: str = "b") -> str:
  """One sentence about a difference of a metric that is better when lower."""
  interval = difference.interval
  if interval.low <= 0.0 <= interval.high:
    return f"no difference shown: {difference}"
  side = "lower" if interval.mean < 0.0 else "higher"
  return f"{name} is {side}: {difference}"
