"""Rows of a batch, all at once: what becomes of B windows of T + 1 tokens."""

from collections.abc import Callable, Sequence

import numpy as np

from gen_jax.data import cache

Features = dict[str, np.ndarray]
# number of a row in the batch -> its generator.
Generators = Callable[[int], np.random.Generator]
# (windows that begin at 0, T, generators) -> features [B, T].
Rows = Callable[[Sequence[cache.Tokens], int, Generators], Features]


def windows(
  found: Sequence[cache.Tokens], length: int, generators: Generators
) -> Features:
  """inputs, targets int32 [B, T] and weights [B, T], 0 where a window is short."""
  del generators
  ids = np.zeros((len(found), length + 1), np.int32)
  weights = np.ones((len(found), length), np.float32)
  for i, window in enumerate(found):
    ids[i, : len(window.ids)] = window.ids
    weights[i, max(len(window.ids) - 1, 0) :] = 0.0
  return {"inputs": ids[:, :-1], "targets": ids[:, 1:], "weights": weights}


def packed(
  found: Sequence[cache.Tokens],
  length: int,
  generators: Generators,
  *,
  shared_marks: bool,
) -> Features:
  """`windows`, and which document each input belongs to.

  A target of another document than its input has weight 0, unless it ends the input's
  own.

  Args:
    shared_marks: the token that opens a document also ends the one before it.

  Returns:
    Besides inputs, targets and weights: segments int32 [B, T], documents of the window
    numbered from 1, 0 for padding; positions int32 [B, T], counted from the document's
    start, or the window's if that comes later.
  """
  features = windows(found, length, generators)
  segments, positions = np.zeros((2, len(found), length), np.int32)
  places = np.arange(length + 1, dtype=np.int32)
  for i, window in enumerate(found):
    num = min(len(window.ids), length)  # places that are not padding
    starts = window.starts[: np.searchsorted(window.starts, num)].astype(np.int32)
    sizes = np.diff(starts, append=num)
    segments[i, :num] = np.repeat(places[1 : len(starts) + 1], sizes)
    positions[i, :num] = places[:num] - np.repeat(starts, sizes)
    if not shared_marks:  # a document's first token is no target
      features["weights"][i, window.starts[1:] - 1] = 0.0
  return {**features, "segments": segments, "positions": positions}


def one(
  rows: Rows, window: cache.Tokens, length: int, generator: np.random.Generator
) -> Features:
  """The row [T] of a single window."""
  found = rows([window], length, lambda _: generator)
  return {name: array[0] for name, array in found.items()}


def each(row: Callable[[cache.Tokens, int, np.random.Generator], Features]) -> Rows:
  """Rows that are made one by one: (window, T, generator) -> features [T]."""

  def made(found, length, generators):
    features = [row(w, length, generators(i)) for i, w in enumerate(found)]
    return {name: np.stack([f[name] for f in features]) for name in features[0]}

  return made
