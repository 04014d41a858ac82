"""Fill in the middle: text rearranged so that what comes after may be read first.

    prefix middle suffix  ->  <prefix> prefix <suffix> suffix <middle> middle eos

A model of the second form is still one that predicts every token from those before it.
Source: Bavarian et al. 2022 (arXiv:2207.14255), PSM order, at the level of the context:
each row is cut anew in every epoch, at two characters drawn at random.
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence

import numpy as np

from gen_jax import ranges
from gen_jax.data import cache, pipeline, tokenizers
from gen_jax.types import InputError

HOLE = "<FILL>"


@dataclasses.dataclass(frozen=True)
class Infill:
  """How often text is rearranged, and what marks its parts.

  Attributes:
    rate: share of the pieces that are rearranged, in [0, 1].
    marks: names that open prefix, suffix and middle. Where the tokenizer has no such
      control tokens, their names are written out as text.
  """

  rate: ranges.Fraction
  marks: tuple[str, str, str]

  __post_init__ = ranges.check

  def prompt(
    self, prefix: Sequence[int], suffix: Sequence[int], tokenizer: tokenizers.Tokenizer
  ) -> list[int]:
    """What a model continues with the middle."""
    marks = [tokenizer.encode_special(mark) for mark in self.marks]
    return [*tokenizer.opening, *marks[0], *prefix, *marks[1], *suffix, *marks[2]]

  def around(self, text: str, tokenizer: tokenizers.Tokenizer) -> list[int]:
    """The prompt for a text with one HOLE in it."""
    if text.count(HOLE) != 1:
      raise InputError(
        f"{text!r:.60} has {text.count(HOLE)} times {HOLE}: once is needed, where text"
        " is to be filled in"
      )
    return self.prompt(*map(tokenizer.encode, text.split(HOLE)), tokenizer)

  def rearranged(
    self,
    text: str,
    room: int,
    tokenizer: tokenizers.Tokenizer,
    generator: np.random.Generator,
  ) -> list[int] | None:
    """Tokens of `text`, its middle last; the suffix is cut so that `room` is enough.

    None where even that does not help.
    """
    first, last = np.sort(generator.integers(0, len(text) + 1, 2))
    parts = text[:first], text[last:], text[first:last]
    prefix, suffix, middle = map(tokenizer.encode, parts)
    end = [*middle, tokenizer.eos]
    over = len(self.prompt(prefix, suffix, tokenizer)) + len(end) - room
    if over > len(suffix):
      return None
    return [*self.prompt(prefix, suffix[: len(suffix) - max(over, 0)], tokenizer), *end]

  def window(
    self,
    stream: cache.Stream,
    start: int,
    length: int,
    generator: np.random.Generator,
    *,
    tokenizer: tokenizers.Tokenizer,
  ) -> pipeline.Features:
    """A `pipeline.packed_row` of the documents in a window, some rearranged."""
    stop = min(start + length + 1, len(stream.ids))
    inside = (stream.starts > start) & (stream.starts < stop)
    bounds = [start, *stream.starts[inside].tolist(), stop]
    pieces = []
    for first, last in itertools.pairwise(bounds):
      ids = stream.ids[first:last].tolist()
      if last < stop and tokenizer.shares_marks:
        ids.append(tokenizer.eos)  # which opens the next document
      if generator.random() < self.rate:
        # At the window's edges characters may be cut in two.
        text = tokenizer.decode(ids).strip("\ufffd")
        ids = self.rearranged(text, len(ids), tokenizer, generator) or ids
      pieces.append(pipeline.Piece(ids))
    return pipeline.packed_row(pieces, length)


@dataclasses.dataclass(frozen=True)
class Gap:
  """A line that is missing, and what stands around it."""

  before: str
  line: str
  after: str


def gaps(documents: Sequence[str], num: int) -> list[Gap]:
  """`num` lines, drawn the same way every time, from all documents in turn.

  Lines of fewer than 8 characters (brackets, blank ones) are not asked for.
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
