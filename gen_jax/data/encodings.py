"""Tokenizer formats behind one interface: text to ids.

A format is recognised by its files and gives the ids of its own library, including
normalisation (NFC, lower case, a space in front). In every format an id stands for
bytes of text (none for control tokens), so decoding is the same for all; see
`data.tokenizers`.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

from gen_jax import errors
from gen_jax.data import encoding, ranks, tokenizer_json
from gen_jax.errors import InputError
from gen_jax.system import files

END_OF_TEXT = ranks.END_OF_TEXT
Encoding = encoding.Encoding
HuggingFace, Settings = tokenizer_json.HuggingFace, tokenizer_json.Settings


def byte_level(
  vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], specials: Sequence[str]
) -> tokenizers.Tokenizer:
  """Byte-level BPE with GPT-2's alphabet and pre-tokenisation."""
  model = tokenizers.models.BPE(vocab=dict(vocab), merges=list(merges))
  backend = tokenizers.Tokenizer(model)
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  backend.add_special_tokens(list(specials))
  return backend


# Classes with GPT-2's pre-tokenisation and control tokens.
_LIKE_GPT2 = (None, "GPT2Tokenizer", "CodeGenTokenizer", "PreTrainedTokenizer")


def gpt2(vocab: bytes, merges: bytes, settings: Settings) -> HuggingFace:
  """Reads GPT-2's own two files. Source: Radford et al. 2019."""
  if settings.kind not in _LIKE_GPT2:
    raise ValueError(
      f"{settings.kind} has a pre-tokenisation of its own, which is not in its"
      " vocabulary and merges; save it as tokenizer.json"
    )
  ids = _vocabulary(vocab)
  names = [name for name in settings.control if name in ids] or [END_OF_TEXT]
  backend = byte_level(ids, _rules(merges), names)
  return _with_added(backend, settings)


def _vocabulary(content: bytes) -> dict[str, int]:
  ids = files.parse_json(content, "the vocabulary")
  if not isinstance(ids, dict) or not ids:
    raise ValueError("the vocabulary is not an object {token: id}")
  for token, i in ids.items():
    if type(i) is not int or i < 0:
      raise ValueError(f"token {token!r} has id {i!r:.40}, not a whole number")
  encoding.check_ids(ids.values())
  return ids


def _with_added(backend: tokenizers.Tokenizer, settings: Settings) -> HuggingFace:
  """The encoding plus the tokens that its settings add."""
  for i, token in sorted(settings.added.items()):
    made = tokenizers.AddedToken(**token)
    add = backend.add_special_tokens if made.special else backend.add_tokens
    add([made])
    if backend.token_to_id(made.content) != i:
      raise ValueError(
        f"added token {made.content!r} has id {i}, but"
        f" {backend.token_to_id(made.content)} in the vocabulary"
      )
  return tokenizer_json.read(backend.to_str().encode(), settings)


def _rules(merges: bytes) -> list[tuple[str, str]]:
  text = files.decode(merges, "the list of merges")
  lines = [line for line in files.lines(text) if line.strip()]
  rules = [line.split(" ") for line in lines if not line.startswith("#version")]
  for rule in rules:
    if len(rule) != 2:
      raise ValueError(f"{' '.join(rule)!r} is not a merge of two pieces")
  return [(left, right) for left, right in rules]


_END_OF_WORD = "</w>"
_CLIP_WORDS = (
  r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
  r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def clip(vocab: bytes, merges: bytes, settings: Settings) -> HuggingFace:
  """Reads CLIP's two files: lower-case BPE with an end-of-word suffix.

  Source: Radford et al. 2021 (arXiv:2103.00020) section 2.4.
  """
  ids = _vocabulary(vocab)
  kinds, rules = tokenizers.pre_tokenizers, tokenizers.normalizers
  split = kinds.Split(tokenizers.Regex(_CLIP_WORDS), "removed", invert=True)
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab=ids, merges=_rules(merges), end_of_word_suffix=_END_OF_WORD
    )
  )
  space = rules.Replace(tokenizers.Regex(r"\s+"), " ")
  backend.normalizer = rules.Sequence([rules.NFC(), space, rules.Lowercase()])
  level = kinds.ByteLevel(add_prefix_space=False)
  backend.pre_tokenizer = kinds.Sequence([split, level])
  backend.decoder = tokenizers.decoders.ByteLevel()
  names = [name for name in ids if name.startswith("<|") and name.endswith("|>")]
  backend.add_special_tokens(names)
  opening, closing = (f"<|{name}|>" for name in ("startoftext", "endoftext"))
  if {opening, closing} <= set(names):
    backend.post_processor = tokenizers.processors.RobertaProcessing(
      (closing, ids[closing]), (opening, ids[opening]), False, False
    )
  return _with_added(backend, settings)


@functools.cache
def plain_bytes() -> HuggingFace:
  """Id = byte, and END_OF_TEXT = 256, which opens texts."""
  backend = byte_level(tokenizer_json.byte_values(), [], [END_OF_TEXT])
  tokenizer_json.opened(backend, END_OF_TEXT)
  return tokenizer_json.read(backend.to_str().encode())


@dataclasses.dataclass(frozen=True, eq=False)
class SentencePiece(encoding.Plain):
  """A SentencePiece .model through the `sentencepiece` library. See `sentence_piece`.

  Source: Kudo and Richardson 2018 (arXiv:1808.06226).
  """

  source: bytes
  backend: Any  # sentencepiece.SentencePieceProcessor
  inner: Any
  rest: Any
  pieces: Sequence[bytes]
  specials: Mapping[str, int]
  given: Settings
  prefix: str
  opening: tuple[int, ...]

  def encode(self, text: str) -> list[int]:
    return self.backend.encode(text)

  def encode_inner(self, text: str) -> list[int]:
    return self.inner.encode(text)

  def encode_rest(self, text: str) -> list[int]:
    return self.rest.encode(text)

  def files(self) -> dict[str, bytes]:
    return {"tokenizer.model": self.source}

  def settings(self) -> dict[str, Any]:
    flags = {key: self.given.flags.get(key) for key in ("add_prefix_space", "legacy")}
    return {**flags, "added_tokens_decoder": dict(self.given.added)}


# Concatenated protocol buffers merge; this one sets
# normalizer_spec.add_dummy_prefix = false.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


def sentence_piece(source: bytes, settings: Settings) -> SentencePiece:
  """Reads a SentencePiece .model; its bos opens texts.

  Args:
    settings: `add_prefix_space` false removes the space before texts, `legacy` false
      the one after control tokens.

  Raises:
    ValueError, RuntimeError: not such a model.
  """
  if not source:
    raise ValueError("it is empty")
  with errors.extra("hub"):
    import sentencepiece
  make = sentencepiece.SentencePieceProcessor
  theirs = make(model_proto=source)
  rest = make(model_proto=source + _NO_DUMMY_PREFIX)
  backend = rest if settings.flags.get("add_prefix_space") is False else theirs
  inner = rest if settings.flags.get("legacy") is False else backend
  size = theirs.get_piece_size()
  if sum(map(theirs.is_byte, range(size))) < 256:
    raise ValueError("some of the 256 bytes have no token: text would be lost")
  pieces, specials = [], {}
  for i in range(size):
    name = theirs.id_to_piece(i)
    if theirs.is_control(i) or theirs.is_unknown(i):
      specials[name] = i
      pieces.append(b"")
    else:
      pieces.append(tokenizer_json.marked_piece(name))
  for i, token in sorted(settings.added.items()):
    name = token["content"]
    if i == len(pieces) and token.get("special"):
      specials[name] = i
      pieces.append(b"")
    elif i >= len(pieces) or name not in (theirs.id_to_piece(i), *specials):
      raise ValueError(
        f"added token {name!r} with id {i} is not read: only control tokens that"
        f" follow the model's {size} pieces are"
      )
  opening = (theirs.bos_id(),) if theirs.bos_id() >= 0 else ()
  before = encoding.prefix(backend.encode, pieces)
  return SentencePiece(
    source, backend, inner, rest, pieces, specials, settings, before, opening
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Characters(encoding.Plain):
  """Id = index of the character in a sorted alphabet; no control tokens."""

  alphabet: str

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
        f" {len(self.alphabet)} of the training text, the only ones this tokenizer"
        " knows; remove it, or use tokenizer bytes"
      ) from None

  def files(self) -> dict[str, bytes]:
    return {"characters.json": json.dumps(self.alphabet).encode()}


def characters(source: bytes) -> Characters:
  """Reads a characters.json."""
  alphabet = files.parse_json(source, "characters.json")
  if not isinstance(alphabet, str) or sorted(set(alphabet)) != list(alphabet):
    raise ValueError("a sorted string of distinct characters is needed")
  return Characters(alphabet)


def _model(contents: Mapping[str, bytes], settings: Settings) -> Encoding:
  """A tokenizer.model: SentencePiece's, or tiktoken ranks (Llama 3)."""
  source = contents["tokenizer.model"]
  first = source.split(b"\n", 1)[0]
  if not re.fullmatch(rb"[A-Za-z0-9+/=]+ [0-9]+\r?", first):
    return sentence_piece(source, settings)
  described = files.parse_json(contents.get("ranks.json", b"{}"), "ranks.json")
  if not isinstance(described, dict) or not isinstance(
    layout := described.get("layout"), str | None
  ):
    raise ValueError('ranks.json is not {"layout": name}')
  return ranks.read(source, layout)


def read(contents: Mapping[str, bytes], settings: Settings) -> Encoding:
  """Reads the encoding from {file name: content}.

  Args:
    settings: from the files next to the vocabulary.

  Raises:
    Exception: of many kinds, for damaged files.
    LookupError: no known files.
  """
  if "tokenizer.json" in contents:
    return tokenizer_json.read(contents["tokenizer.json"], settings)
  if "tokenizer.model" in contents:
    return _model(contents, settings)
  for vocab, merges in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
    if vocab in contents and merges in contents:
      is_clip = f'{_END_OF_WORD}"'.encode() in contents[vocab]
      make = clip if is_clip else gpt2
      return make(contents[vocab], contents[merges], settings)
  if "characters.json" in contents:
    return characters(contents["characters.json"])
  raise LookupError("no tokenizer files")
