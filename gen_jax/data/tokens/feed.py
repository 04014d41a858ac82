"""Batches from token stores: like `pipeline.Pipeline`, for corpora of any size.

A batch is a pure function of (seed, step): see `order` for which rows are in it. Rows
are cut from memory maps, of a bucket read by range requests, many at once. A row is
`length` tokens and one more at every `length` tokens of a store, so that in an epoch
each token but a store's first is a target exactly once.
"""

import bisect
import concurrent.futures
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gen_jax.data import cache, pipeline, rows
from gen_jax.data.tokens import order, store
from gen_jax.errors import InputError

_THREADS = 2  # cutting is little work; more threads wait for the interpreter
_AHEAD = 4  # batches
_REQUESTS = 32  # at once, of a bucket


@dataclasses.dataclass(frozen=True, eq=False)
class Feed:
  """Streams, the mixture of their rows, and how many go into a batch.

  Attributes:
    streams: one or several, of one tokenizer.
    mixture: which stream each row of the run is of.
    rows: what becomes of windows.
    length: tokens of a row.
    batch_size: global batch size B.
    vocab_size: ids must be less.
    seed: of the permutations, and of the generators that `rows` gets.
  """

  streams: Sequence[store.Stream]
  mixture: order.Mixture
  rows: rows.Rows
  length: int
  batch_size: int
  vocab_size: int
  seed: int = 0

  @functools.cached_property
  def sizes(self) -> list[int]:
    """Rows of each stream."""
    return [-(-(len(stream) - 1) // self.length) for stream in self.streams]

  @functools.cached_property
  def _firsts(self) -> list[int]:
    return [0, *itertools.accumulate(self.sizes)]

  @property
  def examples(self) -> Sequence[int]:
    """The rows of all streams, one after the other."""
    return range(self._firsts[-1])

  def _places(self, numbers: range) -> list[tuple[int, int]]:
    """(stream, row of it) of rows of the run."""
    found = zip(*self.mixture.at(np.arange(numbers.start, numbers.stop)), strict=True)
    return [
      (k, order.permuted(before, self.sizes[k], self.seed, k)) for k, before in found
    ]

  def _example(self, index: int) -> tuple[int, int]:
    """(stream, row of it) of one of `examples`."""
    number = bisect.bisect_right(self._firsts, index) - 1
    return number, index - self._firsts[number]

  @functools.cached_property
  def _map(self) -> Callable[..., Iterator]:
    """`map`, in threads if the tokens are in a bucket, whose answers take time."""
    if not any(stream.is_remote for stream in self.streams):
      return map
    return concurrent.futures.ThreadPoolExecutor(_REQUESTS).map

  def _window(self, place: tuple[int, int]) -> cache.Tokens:
    number, at = place
    start = at * self.length
    return self.streams[number].window(start, start + self.length + 1)

  def _cut(self, places: Sequence[tuple[int, int]], first: int) -> pipeline.Features:
    """The rows at these places; `first` numbers their generators."""
    found = list(self._map(self._window, places))
    for window in found:
      if window.ids.max() >= self.vocab_size:
        raise InputError(
          f"the tokens hold {window.ids.max()}, the tokenizer has {self.vocab_size};"
          " they are of another tokenizer"
        )

    def generator(row):
      return np.random.default_rng((self.seed, first + row))

    return self.rows(found, self.length, generator)

  def indices(self, step: int) -> list[int]:
    """Which of `examples` are in the step's global batch, row by row."""
    numbers = range(step * self.batch_size, (step + 1) * self.batch_size)
    return [self._firsts[k] + at for k, at in self._places(numbers)]

  def batch(self, step: int, rows: slice | None = None) -> pipeline.Features:
    """Rows of the step's global batch (default: all), each array [rows, ...]."""
    first = step * self.batch_size
    numbers = range(first, first + self.batch_size)[rows or slice(None)]
    return self._cut(self._places(numbers), numbers.start)

  def stream(
    self, start: int, rows: slice | None = None
  ) -> Iterator[pipeline.Features]:
    """batch(start), batch(start + 1), ... prepared ahead by threads."""
    import grain

    steps = grain.MapDataset.range(start, 2**31)
    dataset = steps.map(lambda step: self.batch(int(step), rows))
    options = grain.ReadOptions(_THREADS, prefetch_buffer_size=_AHEAD)
    return iter(dataset.to_iter_dataset(options))

  def once(self, rows: slice | None = None, max_batches: int | None = None):
    """Yields one ordered pass; the last batch is padded with zero weights."""
    total = len(self.examples)
    num = -(-total // self.batch_size)
    for step in range(min(num, max_batches or num)):
      first = step * self.batch_size
      numbers = range(first, first + self.batch_size)[rows or slice(None)]
      places = [self._example(n if n < total else 0) for n in numbers]
      batch = self._cut(places, numbers.start)
      batch["weights"][max(total - numbers.start, 0) :] = 0.0
      yield batch
