"""Text to ids in each of the formats that people have, behind one interface.

A format is known by its files alone. Whatever it is, an id stands for bytes of text
(none, for control tokens), so decoding is the same for all; see `data.tokenizers`.

SentencePiece writes spaces as U+2581 and puts one before every text. Both are undone
here: that space is `prefix`, written and taken away by the caller, and a U+2581 in the
text itself is written in bytes, so that any text comes back as it was.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import sentencepiece
import tokenizers

from gen_jax.data import ranks
from gen_jax.types import InputError

END_OF_TEXT = ranks.END_OF_TEXT
_SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Encoding(Protocol):
  """How a format turns text into ids.

  Attributes:
    pieces: the bytes of text that each id stands for; none for control tokens.
    specials: {name: id} of the control tokens. Text never encodes to one.
    prefix: what the format puts before a text.
    inner_prefix: what it puts before text that follows a control token.
  """

  pieces: Sequence[bytes]
  specials: Mapping[str, int]
  prefix: str
  inner_prefix: str

  def encode(self, text: str) -> list[int]:
    """Ids of the text, nothing added."""
    ...

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of many texts."""
    ...

  def files(self) -> dict[str, bytes]:
    """What `read` makes this encoding of, by file name."""
    ...


def _literal_marks(
  encode: Callable[[str], list[int]], pieces: Sequence[bytes], text: str
) -> list[int]:
  """`encode`, with every U+2581 of the text written as its three bytes."""
  mark = [pieces.index(bytes([byte])) for byte in _SPACE.encode()]
  first, *rest = text.split(_SPACE)
  return [*encode(first), *(i for part in rest for i in (*mark, *encode(part)))]


@dataclasses.dataclass(frozen=True, eq=False)
class HuggingFace:
  """tokenizer.json through the `tokenizers` library. See `hugging_face`."""

  source: bytes
  backend: tokenizers.Tokenizer
  pieces: Sequence[bytes]
  specials: Mapping[str, int]
  prefix: str
  inner_prefix: str
  is_byte_level: bool

  def _ids(self, text: str) -> list[int]:
    return self.backend.encode(text, add_special_tokens=False).ids

  def encode(self, text: str) -> list[int]:
    if self.is_byte_level or _SPACE not in text:
      return self._ids(text)
    return _literal_marks(self._ids, self.pieces, text)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    if not self.is_byte_level and any(_SPACE in text for text in texts):
      return [self.encode(text) for text in texts]
    found = self.backend.encode_batch(list(texts), add_special_tokens=False)
    return [encoded.ids for encoded in found]

  def files(self) -> dict[str, bytes]:
    return {"tokenizer.json": self.source}


def _flat(part: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
  """The parts of a pipeline of tokenizer.json, sequences opened."""
  if part is None:
    return []
  if part["type"] != "Sequence":
    return [part]
  return [leaf for child in part[inner] for leaf in _flat(child, inner)]


def _without_prefix(config: dict[str, Any]) -> tuple[str, str]:
  """Takes the space that it puts before texts out of a SentencePiece-style config.

  Returns:
    What it put before a text, and before text that follows a control token.
  """
  prefix = inner = ""
  normalizers = _flat(config.get("normalizer"), "normalizers")
  kept = [n for n in normalizers if n["type"] != "Prepend"]
  if len(kept) < len(normalizers):
    prefix = inner = " "
    config["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
  for part in _flat(config.get("pre_tokenizer"), "pretokenizers"):
    if part["type"] == "Metaspace":
      scheme = part.get("prepend_scheme", "always")
      part["prepend_scheme"] = "never"
      prefix = "" if scheme == "never" else " "
      inner = " " if scheme == "always" else ""
  return prefix, inner


def _byte_values() -> dict[str, int]:
  """{character: byte}: GPT-2's alphabet, which writes each byte as a character."""
  visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [byte for byte in range(256) if byte not in visible]
  return {
    **{chr(byte): byte for byte in visible},
    **{chr(256 + i): byte for i, byte in enumerate(others)},
  }


def _byte_level_piece(token: str, values: Mapping[str, int]) -> bytes:
  if not values.keys() >= set(token):
    raise ValueError(f"token {token!r} is not byte-level")
  return bytes(values[c] for c in token)


def _marked_piece(token: str) -> bytes:
  byte = _BYTE.fullmatch(token)
  return bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE, " ").encode()


def hugging_face(source: bytes) -> HuggingFace:
  """Reads the content of a tokenizer.json, byte-level or SentencePiece-style.

  Truncation, padding and BPE dropout are switched off, and control tokens in a text
  are plain text.

  Raises:
    Exception: of many kinds, by the library, for what it cannot read.
  """
  config = json.loads(source)
  config.update(truncation=None, padding=None)
  config["model"].update({"dropout": None} if "dropout" in config["model"] else {})
  decoders = {part["type"] for part in _flat(config.get("decoder"), "decoders")}
  is_byte_level = not decoders & {"ByteFallback", "Metaspace"}
  prefix, inner = ("", "") if is_byte_level else _without_prefix(config)
  backend = tokenizers.Tokenizer.from_str(json.dumps(config))
  backend.encode_special_tokens = True
  added = backend.get_added_tokens_decoder()
  vocab = backend.get_vocab()
  pieces = [b""] * (max(vocab.values()) + 1)
  values = _byte_values()
  for token, i in vocab.items():
    if i in added:
      pieces[i] = b"" if added[i].special else token.encode()
    elif is_byte_level:
      pieces[i] = _byte_level_piece(token, values)
    else:
      pieces[i] = _marked_piece(token)
  specials = {token.content: i for i, token in added.items() if token.special}
  return HuggingFace(source, backend, pieces, specials, prefix, inner, is_byte_level)


def byte_level(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]):
  """The encoding of GPT-2's form: its alphabet, its way to cut words, END_OF_TEXT."""
  model = tokenizers.models.BPE(vocab=dict(vocab), merges=list(merges))
  backend = tokenizers.Tokenizer(model)
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  backend.add_special_tokens([END_OF_TEXT])
  return hugging_face(backend.to_str().encode())


def gpt2(vocab: bytes, merges: bytes) -> HuggingFace:
  """Reads GPT-2's own two files. Source: Radford et al. 2019."""
  return byte_level(json.loads(vocab), _rules(merges))


def _rules(merges: bytes) -> list[tuple[str, str]]:
  lines = [line for line in merges.decode().split("\n") if line.strip()]
  rules = [line.split(" ") for line in lines if not line.startswith("#version")]
  for rule in rules:
    if len(rule) != 2:
      raise ValueError(f"{' '.join(rule)!r} is not a merge of two pieces")
  return [(left, right) for left, right in rules]


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
  """CLIP's BPE: text in lower case, words apart; what it writes is not what it read.

  Source: Radford et al. 2021 (arXiv:2103.00020) section 2.4.
  """

  vocab: bytes
  merges: bytes
  backend: tokenizers.Tokenizer
  pieces: Sequence[bytes]
  specials: Mapping[str, int]

  prefix = inner_prefix = ""

  def encode(self, text: str) -> list[int]:
    return self.backend.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return [self.encode(text) for text in texts]

  def files(self) -> dict[str, bytes]:
    return {"vocab.json": self.vocab, "merges.txt": self.merges}


_END_OF_WORD = "</w>"
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def clip(vocab: bytes, merges: bytes) -> Clip:
  """Reads CLIP's two files, vocab.json and merges.txt."""
  ids = json.loads(vocab)
  kinds = tokenizers.pre_tokenizers
  split = kinds.Split(tokenizers.Regex(_CLIP_WORDS), "removed", invert=True)
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab=ids, merges=_rules(merges), end_of_word_suffix=_END_OF_WORD
    )
  )
  backend.normalizer = tokenizers.normalizers.Sequence(
    [
      tokenizers.normalizers.NFC(),
      tokenizers.normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
      tokenizers.normalizers.Lowercase(),
    ]
  )
  level = kinds.ByteLevel(add_prefix_space=False, use_regex=False)
  backend.pre_tokenizer = kinds.Sequence([split, level])
  names = [name for name in ids if name.startswith("<|") and name.endswith("|>")]
  pieces, values = [b""] * (max(ids.values()) + 1), _byte_values()
  for token, i in ids.items():
    if token not in names:
      word = token.removesuffix(_END_OF_WORD)
      space = b" " * (word != token)
      pieces[i] = _byte_level_piece(word, values) + space
  return Clip(vocab, merges, backend, pieces, {name: ids[name] for name in names})


@functools.cache
def plain_bytes() -> HuggingFace:
  """Id = byte, and END_OF_TEXT = 256."""
  return byte_level(_byte_values(), [])


@dataclasses.dataclass(frozen=True, eq=False)
class SentencePiece:
  """A SentencePiece .model through the `sentencepiece` library. See `sentence_piece`.

  Source: Kudo and Richardson 2018 (arXiv:1808.06226).
  """

  source: bytes
  backend: sentencepiece.SentencePieceProcessor
  pieces: Sequence[bytes]
  specials: Mapping[str, int]
  prefix: str

  @property
  def inner_prefix(self) -> str:
    return self.prefix

  def encode(self, text: str) -> list[int]:
    if _SPACE not in text:
      return self.backend.encode(text)
    return _literal_marks(self.backend.encode, self.pieces, text)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return [self.encode(text) for text in texts]

  def files(self) -> dict[str, bytes]:
    return {"tokenizer.model": self.source}


# Protocol buffers that follow one another merge; this says
# normalizer_spec.add_dummy_prefix = false.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


def sentence_piece(source: bytes) -> SentencePiece:
  """Reads the content of a SentencePiece .model.

  Raises:
    ValueError, RuntimeError: not such a model.
  """
  if not source:
    raise ValueError("it is empty")
  make = sentencepiece.SentencePieceProcessor
  theirs = make(model_proto=source)
  backend = make(model_proto=source + _NO_DUMMY_PREFIX)
  prefix = " " if theirs.encode("a") != backend.encode("a") else ""
  pieces, specials = [], {}
  for i in range(backend.get_piece_size()):
    name = backend.id_to_piece(i)
    if backend.is_control(i) or backend.is_unknown(i):
      specials[name] = i
      pieces.append(b"")
    else:
      pieces.append(_marked_piece(name))
  return SentencePiece(source, backend, pieces, specials, prefix)


@dataclasses.dataclass(frozen=True, eq=False)
class Characters:
  """Id = place of the character in a sorted alphabet; there are no control tokens."""

  alphabet: str

  prefix = inner_prefix = ""
  specials: Mapping[str, int] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def pieces(self) -> list[bytes]:
    return [character.encode() for character in self.alphabet]

  @functools.cached_property
  def _places(self) -> dict[str, int]:
    return {character: i for i, character in enumerate(self.alphabet)}

  def encode(self, text: str) -> list[int]:
    try:
      return [self._places[character] for character in text]
    except KeyError as error:
      character = error.args[0]
      raise InputError(
        f"character {character!r} (U+{ord(character):04X}) is not among the"
        f" {len(self.alphabet)} of the training text, which are all that this"
        " tokenizer knows; take it out, or take tokenizer bytes"
      ) from None

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return [self.encode(text) for text in texts]

  def files(self) -> dict[str, bytes]:
    return {"characters.json": json.dumps(self.alphabet).encode()}


def characters(source: bytes) -> Characters:
  """Reads the content of a characters.json."""
  alphabet = json.loads(source)
  if not isinstance(alphabet, str) or sorted(set(alphabet)) != list(alphabet):
    raise ValueError("a sorted string of distinct characters is needed")
  return Characters(alphabet)


def _model(source: bytes, files: Mapping[str, bytes]) -> Encoding:
  """A .model file: SentencePiece's, or ranks by the same name (Llama 3)."""
  first = source.split(b"\n", 1)[0]
  if not re.fullmatch(rb"[A-Za-z0-9+/=]+ [0-9]+\r?", first):
    return sentence_piece(source)
  layout = json.loads(files["ranks.json"])["layout"] if "ranks.json" in files else None
  return ranks.read(source, layout)


def read(files: Mapping[str, bytes]) -> Encoding:
  """The encoding that the files of a folder hold.

  Raises:
    Exception: of many kinds, for files that are not what their names say.
    LookupError: no known files.
  """
  if "tokenizer.json" in files:
    return hugging_face(files["tokenizer.json"])
  if "tokenizer.model" in files:
    return _model(files["tokenizer.model"], files)
  for vocab, merges in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
    if vocab in files and merges in files:
      is_clip = f'{_END_OF_WORD}"'.encode() in files[vocab]
      return (clip if is_clip else gpt2)(files[vocab], files[merges])
  if "characters.json" in files:
    return characters(files["characters.json"])
  raise LookupError("there are no files of a tokenizer")
