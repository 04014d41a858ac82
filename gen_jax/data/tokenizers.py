"""Text to tokens and back, through the `tokenizers` library's own file format."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
import tokenizers

from gen_jax.types import InputError

END_OF_TEXT = "<|endoftext|>"


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
  """A byte-level tokenizer: any Unicode string survives the round trip.

  `END_OF_TEXT` is the only special token: it opens every document, ends a caption and
  pads.
  """

  backend: tokenizers.Tokenizer

  @functools.cached_property
  def vocab_size(self) -> int:
    return self.backend.get_vocab_size()

  @functools.cached_property
  def eot(self) -> int:
    """Id of END_OF_TEXT."""
    return self.backend.token_to_id(END_OF_TEXT)

  def encode(self, text: str) -> list[int]:
    """Tokens of `text`, nothing added; END_OF_TEXT in the text is plain text."""
    return self.backend.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts: list[str]) -> list[list[int]]:
    """`encode` for many texts, in parallel."""
    return [e.ids for e in self.backend.encode_batch(texts, add_special_tokens=False)]

  def decode(self, ids: Iterable[int]) -> str:
    """Text of `ids`, special tokens left out; broken UTF-8 becomes U+FFFD."""
    return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

  def stream(self, ids: Iterable[int]) -> Iterator[str]:
    """Text piece by piece, each as soon as its bytes are complete characters."""
    state = tokenizers.decoders.DecodeStream(skip_special_tokens=True)
    for i in ids:
      piece = state.step(self.backend, int(i))
      if piece:
        yield piece

  def token_bytes(self, size: int) -> np.ndarray:
    """int32 [size], bytes of text per token; 0 for specials and unused ids."""
    lengths = np.zeros(size, np.int32)
    for token, i in self.backend.get_vocab().items():
      # The byte-level alphabet writes each byte as one character.
      lengths[i] = 0 if token == END_OF_TEXT else len(token)
    return lengths

  def save(self, path: pathlib.Path) -> None:
    """Writes tokenizer.json, whole or not at all."""
    partial = path.with_suffix(".partial")
    self.backend.save(str(partial))
    partial.replace(path)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
  """Byte-level BPE with at most vocab_size tokens. Sennrich et al. 2016; GPT-2.

  vocab_size = 257 is plain bytes.
  """
  if vocab_size < 257:
    raise InputError(
      f"tokenizer vocab_size={vocab_size} must be at least 257: 256 bytes and"
      f" {END_OF_TEXT}"
    )
  backend = tokenizers.Tokenizer(tokenizers.models.BPE())
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[END_OF_TEXT],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  backend.train_from_iterator(texts, trainer)
  backend.encode_special_tokens = True  # END_OF_TEXT in a document is plain text
  return Tokenizer(backend)


def load(path: pathlib.Path) -> Tokenizer:
  """Reads tokenizer.json."""
  try:
    backend = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # the library raises a bare Exception
    raise InputError(f"cannot read tokenizer {path}: {error}") from None
  backend.encode_special_tokens = True
  return Tokenizer(backend)


def from_file(texts: Iterable[str], path: str) -> Tokenizer:
  """A byte-level tokenizer.json made elsewhere; `texts` is not looked at.

  Raises:
    InputError: unreadable, or without END_OF_TEXT.
  """
  del texts
  tokenizer = load(pathlib.Path(path).expanduser())
  if tokenizer.eot is None:
    raise InputError(f"tokenizer {path} has no token {END_OF_TEXT}")
  return tokenizer
