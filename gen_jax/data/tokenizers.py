"""Text to tokens and back, through the `tokenizers` library's own file format."""

import codecs
import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
import tokenizers

from gen_jax.types import InputError

END_OF_TEXT = "<|endoftext|>"
# What a byte-level tokenizer must bring back unchanged.
_PROBE = f"e\u0301\r\n\t  A\x00 日本 🙂{END_OF_TEXT}"


def _byte_values() -> dict[str, int]:
  """{character: byte}: GPT-2's alphabet, which writes each byte as a character."""
  visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [byte for byte in range(256) if byte not in visible]
  return {
    **{chr(byte): byte for byte in visible},
    **{chr(256 + i): byte for i, byte in enumerate(others)},
  }


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
  """A byte-level tokenizer: any Unicode string survives the round trip.

  `END_OF_TEXT` is the only special token: it opens every document, ends a caption and
  pads.
  """

  backend: tokenizers.Tokenizer

  @functools.cached_property
  def pieces(self) -> list[bytes]:
    """The bytes of text that each token stands for; none for special tokens.

    Raises:
      ValueError: a token that is not written in the byte-level alphabet.
    """
    added = self.backend.get_added_tokens_decoder()
    values = _byte_values()
    vocab = self.backend.get_vocab()
    pieces = [b""] * (max(vocab.values()) + 1)
    for token, i in vocab.items():
      if i in added:
        pieces[i] = b"" if added[i].special else token.encode()
      elif not values.keys() >= set(token):
        raise ValueError(f"token {token!r} is not byte-level")
      else:
        pieces[i] = bytes(values[c] for c in token)
    return pieces

  @property
  def vocab_size(self) -> int:
    return len(self.pieces)

  @functools.cached_property
  def eot(self) -> int:
    """Id of END_OF_TEXT."""
    return self.backend.token_to_id(END_OF_TEXT)

  def encode(self, text: str) -> list[int]:
    """Tokens of `text`, nothing added; END_OF_TEXT in the text is plain text.

    Raises:
      InputError: text that is not Unicode (half of a surrogate pair).
    """
    try:
      return self.backend.encode(text, add_special_tokens=False).ids
    except TypeError:
      raise InputError(f"{text!r} is not valid Unicode text") from None

  def encode_batch(self, texts: list[str]) -> list[list[int]]:
    """`encode` for many texts, in parallel."""
    return [e.ids for e in self.backend.encode_batch(texts, add_special_tokens=False)]

  def decode(self, ids: Iterable[int]) -> str:
    """Text of `ids`, special tokens left out; broken UTF-8 becomes U+FFFD."""
    return "".join(self.stream(ids))

  def stream(self, ids: Iterable[int]) -> Iterator[str]:
    """`decode` piece by piece, each as soon as its bytes are complete characters."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for i in ids:  # a model may have more ids than the tokenizer: they are no text
      piece = self.pieces[i] if i < self.vocab_size else b""
      if text := decoder.decode(piece):
        yield text
    if text := decoder.decode(b"", final=True):
      yield text

  def token_bytes(self, size: int) -> np.ndarray:
    """int32 [size], bytes of text per token; 0 for specials and unused ids."""
    lengths = np.zeros(size, np.int32)
    lengths[: len(self.pieces)] = [len(piece) for piece in self.pieces]
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
  """Reads tokenizer.json.

  Raises:
    InputError: unreadable, without END_OF_TEXT, or not byte-level.
  """
  try:
    backend = tokenizers.Tokenizer.from_file(str(path))
    backend.encode_special_tokens = True
    tokenizer = Tokenizer(backend)
    lossless = tokenizer.decode(tokenizer.encode(_PROBE)) == _PROBE
  except Exception as error:  # the library raises a bare Exception
    raise InputError(
      f"cannot read tokenizer {path}: {error}; a byte-level tokenizer.json is needed"
    ) from None
  if tokenizer.eot is None:
    raise InputError(f"tokenizer {path} has no token {END_OF_TEXT}")
  if not lossless:
    raise InputError(
      f"tokenizer {path} does not give back {_PROBE!r} as it was; a byte-level one"
      " without normalisation is needed"
    )
  return tokenizer


def from_file(texts: Iterable[str], path: str) -> Tokenizer:
  """A byte-level tokenizer.json made elsewhere; `texts` is not looked at."""
  del texts
  return load(pathlib.Path(path).expanduser())
