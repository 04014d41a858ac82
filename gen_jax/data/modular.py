"""A source of differences modulo p: some are learned, the others must be inferred.

A document is three letters a, b, c with c = (a - b) mod p. All p^2 pairs are split
once. A model that only remembers the training pairs cannot answer the others (Power et
al. 2022, arXiv:2201.02177).
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from gen_jax import ranges
from gen_jax.data import pipeline, repeats
from gen_jax.errors import InputError

LETTERS = repeats.LETTERS  # the number n is the n-th


@dataclasses.dataclass(frozen=True)
class Modular(repeats.Drawn):
  """Documents of three letters; only the third is a target.

  Attributes:
    modulus: p; numbers are 0 to p - 1.
    train_fraction: share of the pairs that is for training.
    seed: of the split.
  """

  modulus: Annotated[int, ranges.Range(2, len(LETTERS))] = 59
  train_fraction: ranges.OpenFraction = 0.5
  seed: ranges.Seed = 0

  def __post_init__(self) -> None:
    ranges.check(self)
    if not 0 < self._num_train < self.modulus**2:
      raise InputError(
        f"train_fraction={self.train_fraction} of {self.modulus**2} pairs leaves none"
        " on one side; take another fraction, or a larger modulus"
      )

  @property
  def _num_train(self) -> int:
    return round(self.train_fraction * self.modulus**2)

  def documents(self, split: str) -> Sequence[str]:
    """All documents; the splits share no pair (a, b)."""
    order = np.random.default_rng(self.seed).permutation(self.modulus**2)
    parts = np.split(order, [self._num_train])
    return [self._document(i) for i in parts[split != "train"]]

  def _document(self, index: int) -> str:
    a, b = divmod(int(index), self.modulus)
    return "".join(LETTERS[n] for n in (a, b, (a - b) % self.modulus))

  def transform(self, rows, tokenizer, length) -> pipeline.Transform:
    """See `repeats.Drawn`.

    Raises:
      InputError: rows that are too short for the target.
    """
    if length < 2:
      raise InputError(f"data.length={length} must be at least 2 for source modular")
    row = super().transform(rows, tokenizer, length)

    def transform(document, generator):
      features = row(document, generator)
      features["weights"][0] = 0.0  # b cannot be known from a
      return features

    return transform
