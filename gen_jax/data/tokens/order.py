"""Which row is where: a permutation and a mixture that hold nothing in memory.

A row's number in the run (step * B + its place in the batch) alone says which store it
is of, and which row of it. So any process finds its rows at any step.

    row n  ->  store k, by a table of WINDOW rows      ->  the m-th row of that store
           ->  epoch m // N_k, place m mod N_k in it   ->  row pi(seed, k, epoch)(place)

pi is grain's `index_shuffle`, four rounds of a Feistel network of Simon's function with
cycle walking: a permutation of [0, N) that is computed at one index. Its blocks have
2^17 values or more, so for few rows a permutation of numpy's is kept.

How random: over 2,000 seeds the values at a place, the differences of neighbours and
those of a place in two epochs pass chi-square tests of uniformity. There are at most
2^32 orders, and four rounds are no cipher.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np

from gen_jax import ranges
from gen_jax.errors import InputError

WINDOW = 4096  # rows in which shares are exact
_ROUNDS = 4
_FEW = 4096  # rows whose order is kept
LARGEST = 2**31 - 1  # rows of a store


@functools.lru_cache(maxsize=1024)
def _key(seed: int, store: int, epoch: int) -> int:
  """32 bits; neighbouring epochs have nothing in common."""
  return int(np.random.SeedSequence((seed, store, epoch)).generate_state(1)[0])


@functools.lru_cache(maxsize=64)
def _order(key: int, size: int) -> np.ndarray:
  return np.random.default_rng(key).permutation(size)


def permuted(place: int, size: int, seed: int, store: int = 0) -> int:
  """Row in [0, size) at a place of the endless sequence of all epochs of a store.

  >>> sorted(permuted(place, 5, seed=0) for place in range(5, 10))
  [0, 1, 2, 3, 4]
  """
  epoch, at = divmod(place, size)
  key = _key(seed, store, epoch)
  if size <= _FEW:
    return int(_order(key, size)[at])
  import grain.experimental

  return grain.experimental.index_shuffle(
    at, max_index=size - 1, seed=key, rounds=_ROUNDS
  )


@ranges.checked
def quotas(weights: tuple[ranges.NotNegative, ...]) -> np.ndarray:
  """int [K], rows of each store in WINDOW rows: the largest remainders go up.

  >>> quotas((3.0, 1.0)).tolist()
  [3072, 1024]

  Raises:
    InputError: negative weights, none above 0, or one too small to be seen.
  """
  total = sum(weights)
  if not total > 0:
    raise InputError(f"the weights of a mixture are {weights}: one must be above 0")
  exact = np.array(weights, np.float64) / total * WINDOW
  found = np.floor(exact).astype(np.int64)
  short = WINDOW - int(found.sum())
  found[np.argsort(found - exact, kind="stable")[:short]] += 1
  for weight, rows in zip(weights, found, strict=True):
    if weight and not rows:
      raise InputError(
        f"weight {weight:g} of a mixture is less than one row in {WINDOW}; leave the"
        " store out, or raise it"
      )
  return found


@functools.lru_cache(maxsize=64)
def _spread(quotas: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
  """A window: the store of each row [W], and its rows before each place [W + 1, K].

  Each row goes to the store that lags most behind its share.
  """
  quota = np.array(quotas)
  before = np.zeros((WINDOW + 1, len(quota)), np.int64)
  stores = np.zeros(WINDOW, np.int64)
  for i in range(WINDOW):
    stores[i] = np.argmax(quota * (i + 1) - before[i] * WINDOW)
    before[i + 1] = before[i]
    before[i + 1, stores[i]] += 1
  return stores, before


@dataclasses.dataclass(frozen=True)
class Stage:
  """A row of the run, and the mixture's weights from it on."""

  start: int
  weights: tuple[float, ...]


class Mixture:
  """Which store each row of a run is of, and how many rows of it came before.

  Counted from a stage's start, every WINDOW rows hold exactly `quotas` of each store,
  so that shares are within 1 / (2 WINDOW) of the weights; within a window each store
  stays within K rows of its share.
  """

  def __init__(self, stages: Sequence[Stage]):
    """Stages in the order of their starts; the first starts at 0."""
    self._starts = [stage.start for stage in stages]
    if self._starts[0] != 0 or self._starts != sorted(set(self._starts)):
      raise InputError(
        f"the stages of a mixture start at {self._starts}; they must rise from 0"
      )
    self._quotas = [quotas(stage.weights) for stage in stages]
    self._windows = [_spread(tuple(quota.tolist())) for quota in self._quotas]
    before = np.zeros_like(self._quotas[0])
    self._before = [before]
    for i, (start, stop) in enumerate(itertools.pairwise(self._starts)):
      before = before + self._inside(i, np.array([stop - start]))[0]
      self._before.append(before)

  def _inside(self, stage: int, rows: np.ndarray) -> np.ndarray:
    """int [n, K], rows of each store before rows [n] of a stage."""
    whole, place = np.divmod(rows, WINDOW)
    return whole[:, None] * self._quotas[stage] + self._windows[stage][1][place]

  def at(self, rows: np.ndarray) -> tuple[list[int], list[int]]:
    """The store of each row [n] of the run, and how many of its rows came before."""
    stages = np.searchsorted(self._starts, rows, side="right") - 1
    stores, counts = np.zeros_like(rows), np.zeros_like(rows)
    for stage in np.unique(stages):
      mine = stages == stage
      inside = rows[mine] - self._starts[stage]
      stores[mine] = found = self._windows[stage][0][inside % WINDOW]
      before = self._inside(stage, inside) + self._before[stage]
      counts[mine] = np.take_along_axis(before, found[:, None], axis=1)[:, 0]
    return stores.tolist(), counts.tolist()
