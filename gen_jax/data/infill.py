"""Fill in the middle: text rearranged so that the suffix precedes the middle.

    prefix middle suffix  ->  <prefix> prefix <suffix> suffix <middle> middle eos

The model stays autoregressive. Source: Bavarian et al. 2022 (arXiv:2207.14255), PSM
order, at context level: in each epoch each document is split at two random characters.
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence

import numpy as np

from gen_jax import ranges
from gen_jax.data import cache, pipeline, tokenizers
from gen_jax.errors import InputError

HOLE = "<FILL>"


@dataclasses.dataclass(frozen=True)
class Infill:
  """Rate and markers of fill-in-the-middle.

  Attributes:
    rate: share of documents that are rearranged, in [0, 1].
    marks: control tokens that open prefix, suffix and middle; encoded as text if the
      tokenizer has no such tokens.
  """

  rate: ranges.Fraction
  marks: tuple[str, str, str]

  def __post_init__(self) -> None:
    ranges.check(self)

  def prompt(
    self, prefix: Sequence[int], suffix: Sequence[int], tokenizer: tokenizers.Tokenizer
  ) -> list[int]:
    """The prompt that the model continues with the middle."""
    marks = [tokenizer.encode_special(mark) for mark in self.marks]
    return [*tokenizer.opening, *marks[0], *prefix, *marks[1], *suffix, *marks[2]]

  def around(self, text: str, tokenizer: tokenizers.Tokenizer) -> list[int]:
    """The prompt for a text that contains HOLE once."""
    if text.count(HOLE) != 1:
      raise InputError(
        f"{text!r:.60} has {text.count(HOLE)} times {HOLE}: it must mark the gap once"
      )
    return self.prompt(*map(tokenizer.encode, text.split(HOLE)), tokenizer)

  def rearranged(
    self,
    text: str,
    room: int,
    tokenizer: tokenizers.Tokenizer,
    generator: np.random.Generator,
  ) -> list[int] | None:
    """Tokens of `text`, its middle last, with the suffix truncated to fit `room`.

    None if even that does not fit.
    """
    first, last = np.sort(generator.integers(0, len(text) + 1, 2))
    parts = text[:first], text[last:], text[first:last]
    prefix, suffix, middle = map(tokenizer.encode, parts)
    end = [*middle, tokenizer.eos]
    over = len(self.prompt(prefix, suffix, tokenizer)) + len(end) - room
    if over > len(suffix):
      return None
    return [*self.prompt(prefix, suffix[: len(suffix) - max(over, 0)], tokenizer), *end]

  def row(
    self,
    window: cache.Tokens,
    length: int,
    generator: np.random.Generator,
    *,
    tokenizer: tokenizers.Tokenizer,
  ) -> pipeline.Features:
    """The documents in a window as a `pipeline.packed_row`, some rearranged."""
    stop = len(window.ids)
    bounds = [*window.starts.tolist(), stop]
    pieces = []
    for first, last in itertools.pairwise(bounds):
      ids = window.ids[first:last].tolist()
      if last < stop and tokenizer.shares_marks:
        ids.append(tokenizer.eos)  # it also opens the next document
      if generator.random() < self.rate:
        # The window's edges may split a character.
        text = tokenizer.decode(ids).strip("\ufffd")
        ids = self.rearranged(text, len(ids), tokenizer, generator) or ids
      pieces.append(pipeline.Piece(ids))
    return pipeline.packed_row(pieces, length)


@dataclasses.dataclass(frozen=True)
class Gap:
  """A missing line and the text around it."""

  before: str
  line: str
  after: str


def gaps(documents: Sequence[str], num: int) -> list[Gap]:
  """`num` random lines, the same in every run, from all documents in turn.

  Lines shorter than 8 characters (brackets, blank ones) are skipped.
  """
  generator = np.random.default_rng(0)
  found = []
  order = generator.permutation(len(documents))
  for i in np.resize(order, num if len(order) else 0):
    lines = re.findall(r"[^\n]*\n|[^\n]+", documents[int(i)])
    long_enough = [n for n, line in enumerate(lines) if len(line.strip()) >= 8]
    if long_enough:
      n = int(generator.choice(long_enough))
      line = lines[n].strip()
      indent, _, rest = lines[n].partition(line)
      before, after = "".join(lines[:n]), "".join(lines[n + 1 :])
      found.append(Gap(before + indent, line, rest + after))
  return found
