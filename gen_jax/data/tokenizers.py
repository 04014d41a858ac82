"""Makes tokenizers from training texts, or reads them from files.

`Tokenizer` itself is in `data.tokenizer`, the formats in `data.encodings`.
"""

import pathlib
from collections.abc import Iterable

import tokenizers

from gen_jax import ranges
from gen_jax.data import (
  encodings,
  ranks,
  slicing,
  token_settings,
  tokenizer,
  tokenizer_json,
)
from gen_jax.errors import InputError, one_line
from gen_jax.system import files

Tokenizer = tokenizer.Tokenizer
END_OF_TEXT = encodings.END_OF_TEXT
_NOTHING = token_settings.Settings()
# Default bos and eos, if the files have none.
_MARKS = (
  ("<|startoftext|>", END_OF_TEXT),
  (END_OF_TEXT, END_OF_TEXT),
  ("<|begin_of_text|>", "<|end_of_text|>"),
  ("<s>", "</s>"),
)
_END_OF_TURN = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")


def check_eos(made: Tokenizer, what: str) -> None:
  """Raises InputError for a tokenizer without eos; `what` is 'captions need', say."""
  if made.eos is None:
    raise InputError(
      f"{what} a tokenizer with a token that ends texts; take bytes or bpe"
    )


def _usual(encoding: encodings.Encoding) -> tuple[str | None, str | None]:
  """Default names of bos and eos."""
  known = (pair for pair in _MARKS if encoding.specials.keys() >= set(pair))
  return next(known, (None, None))


def _id(encoding: encodings.Encoding, name: str | None) -> int | None:
  if name is not None and name not in encoding.specials:
    raise InputError(f"{name!r} is named as bos or eos, but is not a control token")
  return encoding.specials.get(name)


def _made(
  encoding: encodings.Encoding, settings: token_settings.Settings = _NOTHING
) -> Tokenizer:
  """A tokenizer with its settings applied."""
  bos, eos = (
    _id(encoding, settings.names.get(kind, usual))
    for kind, usual in zip(("bos", "eos"), _usual(encoding), strict=True)
  )
  marks = []  # explicit flags take precedence over the post-processor
  for key, mark, own in (
    ("add_bos_token", bos, encoding.opening),
    ("add_eos_token", eos, encoding.closing),
  ):
    is_added = settings.flags.get(key)
    given = (mark,) if is_added and mark is not None else ()
    marks.append(own if is_added is None else given)
  stops = (eos, *settings.stops, *map(encoding.specials.get, _END_OF_TURN))
  stops = tuple(dict.fromkeys(stop for stop in stops if stop is not None))
  pad = _pad(encoding, settings.names.get("pad"))
  return Tokenizer(encoding, bos, eos, *marks, stops, settings.template, pad)


def _pad(encoding: encodings.Encoding, name: str | None) -> int | None:
  """The id of the padding token, which may be an ordinary token."""
  if name in encoding.specials:
    return encoding.specials[name]
  pieces, piece = encoding.pieces, (name or "").encode()
  return pieces.index(piece) if piece and piece in pieces else None


def plain_bytes(texts: Iterable[str] = ()) -> Tokenizer:
  """Id = byte, and END_OF_TEXT = 256; `texts` is not used."""
  del texts
  return _made(encodings.plain_bytes())


def characters(texts: Iterable[str]) -> Tokenizer:
  """The sorted characters of the texts; no other character can be encoded."""
  alphabet = set()
  for text in texts:
    tokenizer.check_unicode(text)
    alphabet.update(text)
  if not alphabet:
    raise InputError("no text to take characters from; give other files")
  return _made(encodings.Characters("".join(sorted(alphabet))))


def train_bpe(
  texts: Iterable[str], vocab_size: ranges.Vocabulary, specials: tuple[str, ...] = ()
) -> Tokenizer:
  """Byte-level BPE with at most vocab_size tokens. Sennrich et al. 2016; GPT-2.

  Args:
    specials: names of control tokens besides END_OF_TEXT.
  """
  names = [END_OF_TEXT, *specials]
  if vocab_size < 256 + len(names):
    raise InputError(
      f"tokenizer vocab_size={vocab_size} must be at least {256 + len(names)}: 256"
      f" bytes and {', '.join(names)}"
    )
  backend = encodings.byte_level({}, [], [])
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=names,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  words = encodings.plain_bytes()  # it has the same pre-tokenisation
  parts = (part.text for text in texts for part in slicing.slices(text, words))
  backend.train_from_iterator(parts, trainer)
  tokenizer_json.opened(backend, END_OF_TEXT)
  return _made(tokenizer_json.read(backend.to_str().encode()))


_FILES = (
  "tokenizer.json",
  "tokenizer.model",
  "ranks.json",
  "encoder.json",
  "vocab.bpe",
  "vocab.json",
  "merges.txt",
  "characters.json",
)


def _read_files(path: pathlib.Path) -> dict[str, bytes]:
  """{standard file name: content} of a tokenizer's files."""
  if path.is_dir():
    home, wanted = path, (*token_settings.FILES, *_FILES)
  elif path.name in _FILES:
    pair = {"encoder.json": "vocab.bpe", "vocab.json": "merges.txt"}
    pair |= {value: key for key, value in pair.items()}
    partner = pair.get(path.name, "ranks.json")
    home, wanted = path.parent, (*token_settings.FILES, path.name, partner)
  else:
    home, wanted = path.parent, token_settings.FILES
  found = {name: home / name for name in wanted if (home / name).exists()}
  if not path.is_dir() and path.name not in found:
    name = "tokenizer.json" if path.suffix == ".json" else "tokenizer.model"
    found[name] = path
  return {name: file.read_bytes() for name, file in found.items()}


def load(path: pathlib.Path, layout: str | None = None) -> Tokenizer:
  """Reads a tokenizer from a folder or one of its files.

  Formats: tokenizer.json, GPT-2's encoder.json and vocab.bpe (or vocab.json and
  merges.txt), SentencePiece's and tiktoken's tokenizer.model, and what `save` writes.
  Settings are read from tokenizer_config.json, special_tokens_map.json,
  added_tokens.json, generation_config.json and chat_template.jinja. Ids are those of
  the format's own library, normalisation included.

  Args:
    layout: of a tiktoken file, see `ranks.LAYOUTS`.

  Raises:
    InputError: unreadable, damaged, an unknown format, or some text has no tokens.
  """
  try:
    files.check_hashes(path)
  except InputError as error:
    raise InputError(f"cannot read tokenizer: {error}") from None
  try:
    contents = _read_files(path)
    settings = token_settings.read(contents)
    if layout is not None:
      encoding = ranks.read(contents["tokenizer.model"], layout)
    else:
      encoding = encodings.read(contents, settings)
    made = _made(encoding, settings)
  except OSError as error:
    raise InputError(f"cannot read tokenizer {path}: {error.strerror}") from None
  except BaseException as error:  # the libraries raise many kinds; Rust's panic is one
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
      raise
    raise InputError(
      f"cannot read tokenizer {path}: {one_line(error)}; needed is a folder or file of"
      " Hugging Face (tokenizer.json), GPT-2 (encoder.json and vocab.bpe),"
      " SentencePiece (.model) or tiktoken"
    ) from None
  return made


def from_file(texts: Iterable[str], path: str, layout: str | None = None) -> Tokenizer:
  """A tokenizer from files, see `load`; `texts` is not used."""
  del texts
  return load(files.path(path, "data.tokenizer.path"), layout)
