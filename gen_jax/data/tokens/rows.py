"""Rows of a batch, all at once: what becomes of B windows of T + 1 tokens.

As `pipeline.window` and `pipeline.packed_window` do for one, which are the definition.
"""

from collections.abc import Callable, Sequence

import numpy as np

from gen_jax.data import cache, pipeline

# number of a row in the batch -> its generator.
Generators = Callable[[int], np.random.Generator]
# (windows that begin at 0, T, generators) -> features [B, T].
Rows = Callable[[Sequence[cache.Tokens], int, Generators], pipeline.Features]


def windows(
  found: Sequence[cache.Tokens], length: int, generators: Generators
) -> pipeline.Features:
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
) -> pipeline.Features:
  """`windows`, and segments and positions int32 [B, T] of their documents.

  Args:
    shared_marks: the token that opens a document also ends the one before it.
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


def each(cut: pipeline.Cut) -> Rows:
  """Rows that are cut one by one."""

  def made(found, length, generators):
    features = [cut(w, 0, length, generators(i)) for i, w in enumerate(found)]
    return {name: np.stack([f[name] for f in features]) for name in features[0]}

  return made
