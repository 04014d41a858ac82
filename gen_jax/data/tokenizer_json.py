"""tokenizer.json of Hugging Face, through the `tokenizers` library.

The library does normalisation, pre-tokenisation and added tokens. Added here: the bytes
of each token, the ids around a text, and the encoding of text after a control token or
other text.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import tokenizers

from gen_jax.data import encoding, token_settings
from gen_jax.system import files

_SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
Settings = token_settings.Settings
_NOTHING = Settings()


def _ids(backend: tokenizers.Tokenizer, text: str) -> list[int]:
  return backend.encode(text, add_special_tokens=False).ids


@dataclasses.dataclass(frozen=True, eq=False)
class HuggingFace:
  """tokenizer.json through the `tokenizers` library. See `read`.

  Attributes:
    inner: for text that follows a control token.
    rest: for text that continues other text: prepends no space.
  """

  source: bytes
  backend: tokenizers.Tokenizer
  inner: tokenizers.Tokenizer
  rest: tokenizers.Tokenizer
  pieces: Sequence[bytes]
  specials: Mapping[str, int]
  patterns: Mapping[str, str]
  prefix: str
  opening: tuple[int, ...]
  closing: tuple[int, ...]

  def encode(self, text: str) -> list[int]:
    return _ids(self.backend, text)

  def encode_inner(self, text: str) -> list[int]:
    return _ids(self.inner, text)

  def encode_rest(self, text: str) -> list[int]:
    return _ids(self.rest, text)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    # Fast: without offsets.
    found = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoded.ids for encoded in found]

  def files(self) -> dict[str, bytes]:
    return {"tokenizer.json": self.source}

  def settings(self) -> dict[str, Any]:
    return {}


def _flat(part: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
  """The parts of a pipeline of tokenizer.json, sequences flattened."""
  if part is None:
    return []
  if part["type"] != "Sequence":
    return [part]
  return [leaf for child in part[inner] for leaf in _flat(child, inner)]


def _without_prefix(config: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
  """A tokenizer.json that prepends no space to texts.

  Returns:
    It, and whether the given one prepends its space only to the first text.
  """
  config, is_first = json.loads(json.dumps(config)), False
  normalizers = _flat(config["normalizer"], "normalizers")
  kept = [part for part in normalizers if part["type"] != "Prepend"]
  if len(kept) < len(normalizers):
    config["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
  for part in _flat(config["pre_tokenizer"], "pretokenizers"):
    if part["type"] == "Metaspace":
      is_first |= part["prepend_scheme"] == "first"
      part["prepend_scheme"] = "never"
    elif part["type"] == "ByteLevel":
      part["add_prefix_space"] = False
  return config, is_first


def _spaced(config: Mapping[str, Any], is_spaced: bool | None) -> Mapping[str, Any]:
  """A tokenizer.json that prepends a space or none; None: unchanged."""
  if not is_spaced:
    return config if is_spaced is None else _without_prefix(config)[0]
  config = json.loads(json.dumps(config))
  for part in _flat(config["pre_tokenizer"], "pretokenizers"):
    if part["type"] == "ByteLevel":
      part["add_prefix_space"] = True
    elif part["type"] == "Metaspace" and part["prepend_scheme"] == "never":
      part["prepend_scheme"] = "first"
  return config


def byte_values() -> dict[str, int]:
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


def marked_piece(token: str) -> bytes:
  """The bytes of a SentencePiece-style token: U+2581 is a space, <0x0A> a byte."""
  byte = _BYTE.fullmatch(token)
  return bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE, " ").encode()


def _canonical(source: bytes) -> dict[str, Any]:
  """A tokenizer.json in its library's current format, without truncation and padding.

  Raises:
    ValueError: added tokens have other ids than the library gives them.
    Exception: of many kinds, from the library, for what it cannot read.
  """
  given = files.parse_json(source, "tokenizer.json")
  _check_ids(given)
  backend = tokenizers.Tokenizer.from_str(json.dumps(given))
  for token in given.get("added_tokens") or ():
    have = backend.token_to_id(token["content"])
    if have != token["id"]:
      raise ValueError(f"added token {token['content']!r} has id {token['id']}: {have}")
  config = json.loads(backend.to_str())
  config.update(truncation=None, padding=None)
  config["model"].update({"dropout": None} if "dropout" in config["model"] else {})
  return config


def _check_ids(given: Any) -> None:
  """Raises ValueError for ids far beyond the entries: the library loops over them all.

  Other malformed files are left to the library.
  """
  model = given.get("model") if isinstance(given, dict) else None
  vocab = model.get("vocab") if isinstance(model, dict) else None
  ids = list(vocab.values()) if isinstance(vocab, dict) else []
  encoding.check_ids([i for i in ids if type(i) is int] or [0])


def _backend(config: Mapping[str, Any], names: Sequence[str]) -> tokenizers.Tokenizer:
  """The library's tokenizer, with these tokens of the vocabulary as control tokens."""
  backend = tokenizers.Tokenizer.from_str(json.dumps(config))
  known = [name for name in names if backend.token_to_id(name) is not None]
  backend.add_special_tokens(known)
  backend.encode_special_tokens = True
  return backend


def _check_complete(config: Mapping[str, Any], is_byte_level: bool) -> None:
  """Raises ValueError if some text has no tokens and would be lost silently."""
  model = config["model"]
  if model["type"] not in ("BPE", "Unigram"):
    raise ValueError(f"its model is {model['type']}; BPE or Unigram is needed")
  if model.get("continuing_subword_prefix"):
    raise ValueError(
      f"continuing_subword_prefix={model['continuing_subword_prefix']!r} is not read"
    )
  vocab = model["vocab"]
  known = vocab.keys() if isinstance(vocab, dict) else {piece for piece, _ in vocab}
  suffix = model.get("end_of_word_suffix") or ""
  if is_byte_level:  # UTF-8 has no 0xC0, 0xC1, nor any byte above 0xF4
    bytes_ = (c for c, b in byte_values().items() if b < 0xC0 or 0xC1 < b < 0xF5)
    needed = {word for c in bytes_ for word in (c, c + suffix)}
  else:
    needed = {f"<0x{byte:02X}>" for byte in range(256)}
  if not needed <= set(known) or not (is_byte_level or model.get("byte_fallback")):
    raise ValueError("some of the 256 bytes have no token: text would be lost")


def _pattern(token: tokenizers.AddedToken) -> str:
  """Regex of a control token in a template's text."""
  space = r"[^\S\x1c-\x1f]*"  # as in the library
  word = re.escape(token.content)
  if token.single_word:
    word = rf"(?<!\w){word}(?!\w)"
  return f"{space * token.lstrip}{word}{space * token.rstrip}"


def _marks(
  backend: tokenizers.Tokenizer, control: Collection[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """The control tokens that the post-processor puts before and after a text.

  Raises:
    ValueError: it does more than that.
  """
  body, whole = _ids(backend, "a"), backend.encode("a").ids
  for start in range(len(whole) - len(body) + 1):
    opening, closing = whole[:start], whole[start + len(body) :]
    if [*opening, *body, *closing] == whole and {*opening, *closing} <= set(control):
      return tuple(opening), tuple(closing)
  raise ValueError("its post_processor does more than put control tokens around a text")


def read(source: bytes, settings: Settings = _NOTHING) -> HuggingFace:
  """Reads a tokenizer.json, byte-level or SentencePiece-style.

  Control tokens in a text are plain text. No truncation, padding or BPE dropout.

  Args:
    settings: further names of control tokens, and add_prefix_space.

  Raises:
    Exception: of many kinds, from the library, for what it cannot read.
  """
  given = _canonical(source)
  config = _spaced(given, settings.flags.get("add_prefix_space"))
  bare, is_first = _without_prefix(config)
  control = {token["content"] for token in config["added_tokens"] if token["special"]}
  named = [name for name in settings.control if name not in control]
  backend = _backend(config, named)
  rest = backend if bare == config else _backend(bare, named)
  for i, token in settings.added.items():
    if (have := backend.token_to_id(token["content"])) != i:
      raise ValueError(
        f"{token['content']!r} is added as {i}; tokenizer.json has"
        f" {'no such token' if have is None else have}"
      )
  if named or config != given:  # saved with the settings applied
    source = backend.to_str().encode()
  pieces = _pieces(config, backend)
  added = backend.get_added_tokens_decoder()
  control = {token.content: (i, token) for i, token in added.items() if token.special}
  return HuggingFace(
    source,
    backend,
    rest if is_first else backend,
    rest,
    pieces,
    {name: i for name, (i, _) in control.items()},
    {name: _pattern(token) for name, (_, token) in control.items()},
    encoding.prefix(functools.partial(_ids, backend), pieces),
    *_marks(backend, [i for i, _ in control.values()]),
  )


def _pieces(config: Mapping[str, Any], backend: tokenizers.Tokenizer) -> list[bytes]:
  """The bytes of text of each id.

  Raises:
    ValueError: they cannot be determined, ids with huge gaps, bytes without a token.
  """
  inside = {
    part["type"]
    for key, inner in (
      ("normalizer", "normalizers"),
      ("pre_tokenizer", "pretokenizers"),
      ("decoder", "decoders"),
    )
    for part in _flat(config[key], inner)
  }
  is_byte_level = "ByteLevel" in inside or not inside & {"ByteFallback", "Metaspace"}
  vocab, added = backend.get_vocab(), backend.get_added_tokens_decoder()
  encoding.check_ids(vocab.values())
  pieces = [b""] * (max(vocab.values()) + 1)
  suffix, values = config["model"].get("end_of_word_suffix") or "", byte_values()
  for token, i in vocab.items():
    if i in added:
      pieces[i] = b"" if added[i].special else token.encode()
    elif is_byte_level:
      word = token.removesuffix(suffix)
      pieces[i] = _byte_level_piece(word, values) + b" " * (word != token)
    else:
      pieces[i] = marked_piece(token)
  _check_complete(config, is_byte_level)
  return pieces


def opened(backend: tokenizers.Tokenizer, name: str) -> None:
  """Sets a post-processor that puts a control token before every text."""
  backend.post_processor = tokenizers.processors.TemplateProcessing(
    single=f"{name} $A",
    pair=f"{name} $A {name} $B",
    special_tokens=[(name, backend.token_to_id(name))],
  )
