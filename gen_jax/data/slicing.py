"""Splits long texts into slices whose tokens, concatenated, are those of the text.

Tokenizers use tens to hundreds of bytes of memory per byte of text; slices bound it.

A text is cut before a space or a line feed that follows another kind of character. This
changes no token if no piece of the vocabulary spans such a position: BPE merges only
neighbours, so both sides are merged independently (Sennrich et al. 2016).
Pre-tokenisation depends on the nearby text only, and is tested at every cut.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers as huggingface

from gen_jax.data import encodings, ranks
from gen_jax.data import tokenizer as tokenizers

_SIZE = 2**15  # minimum characters of a slice
_AROUND = 256  # characters on each side of a cut with which it is tested
_TRIES = 16


class Slice(NamedTuple):
  """A part of a document, and whether it is its first and its last."""

  text: str
  is_first: bool = True
  is_last: bool = True


@functools.lru_cache(maxsize=4)
def _places(encoding: encodings.Encoding) -> re.Pattern | None:
  """Regex of positions where the vocabulary allows a cut; None: nowhere.

  Unigram models score a text as a whole; CLIP's end-of-word suffix is not in the text.
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
  """The text in slices of about 32,768 characters, or whole if it cannot be cut.

  The first is encoded as a text, the others with `encode_rest`.
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
  if not tokenizer.prefix:  # then `encode_rest` is `encode`
    return tokenizer.encode_batch([part.text for part in parts])
  heads = iter(tokenizer.encode_batch([part.text for part in parts if part.is_first]))
  for part in parts:
    tokenizers.check_unicode(part.text)
  rest = tokenizer.encoding.encode_rest
  return [next(heads) if part.is_first else rest(part.text) for part in parts]


def encode(text: str, tokenizer: tokenizers.Tokenizer) -> np.ndarray:
  """int32 [n], the tokens of a text of any length, nothing added."""
  found = (encode_batch([part], tokenizer) for part in slices(text, tokenizer.encoding))
  return np.concatenate([np.array(ids, np.int32) for (ids,) in found])
