"""A source of random letters that repeat: what follows is known from the context alone.

A document is a word of random letters, written again and again. No letter of the first
word can be predicted; all later ones can be copied from one word before. The words are
of different lengths, so that no fixed distance tells where to copy from: a model has to
find the place where the present letter stood before, and to look at the one after it
(an induction head: Olsson et al. 2022, arXiv:2209.11895).
"""

import dataclasses
import string
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from gen_jax import ranges
from gen_jax.data import cache, pipeline, sources, tokenizers
from gen_jax.data import rows as row_batches

LETTERS = string.ascii_letters + string.digits


class Drawn:
  """A source of `documents(split)` that are computed, a row of each."""

  def identity(self) -> str:
    return ""

  def feed(
    self,
    split: str,
    tokenizer: tokenizers.Tokenizer,
    *,
    rows: row_batches.Rows,
    length: int,
    batch_size: int,
    seed: int,
  ) -> pipeline.Pipeline:
    """Batches of a split: a row is a document from its beginning on."""
    transform = self.transform(rows, tokenizer, length)
    return pipeline.Pipeline(self.documents(split), transform, batch_size, seed)

  def transform(
    self, rows: row_batches.Rows, tokenizer: tokenizers.Tokenizer, length: int
  ) -> pipeline.Transform:
    """What makes a row of `length` tokens of a document's beginning."""

    def transform(document, generator):
      ids = np.asarray(tokenizer.encode(document)[: length + 1])
      window = cache.Tokens(ids, np.zeros(1, np.int64))
      return row_batches.one(rows, window, length, generator)

    return transform


@dataclasses.dataclass(frozen=True)
class Repeats(Drawn):
  """Documents as a function of (seed, index).

  Attributes:
    num, num_validation: documents of each split.
    length: letters of a document; a row of data.length tokens takes one more.
    num_letters: how many of `LETTERS` are used, all equally likely.
    shortest, longest: length of the word, uniform between them.
    seed: of the documents.
  """

  num: ranges.Count = 50_000
  num_validation: ranges.Count = 256
  length: ranges.Size = 65
  num_letters: Annotated[int, ranges.Range(2, len(LETTERS))] = len(LETTERS)
  shortest: ranges.Size = 8
  longest: ranges.Size = 24
  seed: ranges.Seed = 0

  def __post_init__(self) -> None:
    ranges.check_rising(self, "shortest", "longest")

  def documents(self, split: str) -> Sequence[str]:
    """All documents; the splits are disjoint."""
    first, num = {"train": (0, self.num)}.get(split, (self.num, self.num_validation))
    return sources.Mapped(range(first, first + num), self._document)

  def _document(self, index: int) -> str:
    generator = np.random.default_rng((self.seed, index))
    period = int(generator.integers(self.shortest, self.longest + 1))
    word = generator.integers(self.num_letters, size=period)
    return "".join(LETTERS[letter] for letter in np.resize(word, self.length))
