"""Long texts cut into slices that have, one after another, the tokens of the whole.

Tokenizers keep tens to hundreds of bytes for each byte of a text while they work on it;
on slices they need no more than for the longest one.

A text is cut before a space or a line feed that follows another kind of character. That
changes no token where the vocabulary has no piece that reaches over such a place: BPE
merges two neighbours into a piece, so what stands left and right of it is merged
independently (Sennrich et al. 2016). How text is split into words depends on its
surroundings alone, and is tried out on those of every cut.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers as huggingface

from gen_jax.data import encodings, ranks
from gen_jax.data import tokenizer as tokenizers

_SIZE = 2**15  # characters of a slice, at least
_AROUND = 256  # characters on each side of a cut on which it is tried out
_TRIES = 16


class Slice(NamedTuple):
  """A part of a document; whether it is the first, and the last of its parts."""

  text: str
  is_first: bool = True
  is_last: bool = True


@functools.lru_cache(maxsize=4)
def _places(encoding: encodings.Encoding) -> re.Pattern | None:
  """Where a text may be cut, as far as the vocabulary says; None: nowhere.

  Unigram models weigh a text as a whole; of CLIP's the ends of words are not in it.
  """
  is_bpe = isinstance(encoding, encodings.Characters | ranks.Ranks) or (
    isinstance(encoding, encodings.HuggingFace)
    and isinstance(encoding.backend.model, huggingface.models.BPE)
  )
  if not is_bpe:
    return None
  pieces = list(encoding.pieces)
  over = {mark: re.compile(rb"[^\s]" + re.escape(mark.encode())) for mark in " \n"}
  marks = [m for m in over if not any(map(over[m].search, pieces))]
  return re.compile(rf"(?<=\S)[{''.join(marks)}]") if marks else None


def _is_cut(encoding: encodings.Encoding, text: str, at: int) -> bool:
  left, right = text[max(at - _AROUND, 0) : at], text[at : at + _AROUND]
  parts = [*encoding.encode_rest(left), *encoding.encode_rest(right)]
  return list(encoding.encode_rest(left + right)) == parts


def slices(text: str, encoding: encodings.Encoding) -> Iterator[Slice]:
  """The text in slices of about 32,768 characters; whole, where it cannot be cut.

  The tokens of the first as a text, and of the others as the rest of one, are those of
  the whole.
  """
  start = 0
  while len(text) - start > 2 * _SIZE and (places := _places(encoding)):
    found = zip(range(_TRIES), places.finditer(text, start + _SIZE), strict=False)
    ends = (match.start() for _, match in found)
    end = next((end for end in ends if _is_cut(encoding, text, end)), None)
    if end is None:
      break
    yield Slice(text[start:end], start == 0, False)
    start = end
  yield Slice(text[start:] if start else text, start == 0, True)


def encode_batch(
  parts: Sequence[Slice], tokenizer: tokenizers.Tokenizer
) -> list[list[int]]:
  """Ids of slices, nothing added."""
  if not tokenizer.prefix:  # the rest of a text is a text
    return tokenizer.encode_batch([part.text for part in parts])
  heads = iter(tokenizer.encode_batch([part.text for part in parts if part.is_first]))
  for part in parts:
    tokenizers.check_unicode(part.text)
  rest = tokenizer.encoding.encode_rest
  return [next(heads) if part.is_first else rest(part.text) for part in parts]


def encode(text: str, tokenizer: tokenizers.Tokenizer) -> np.ndarray:
  """int32 [n]: the tokens of a text of any length, nothing added."""
  found = (encode_batch([part], tokenizer) for part in slices(text, tokenizer.encoding))
  return np.concatenate([np.array(ids, np.int32) for (ids,) in found])
