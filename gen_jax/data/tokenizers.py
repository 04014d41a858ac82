"""Where tokenizers come from: made of the training texts, or read from files.

`Tokenizer` itself is in `data.tokenizer`, the formats in `data.encodings`.
"""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers

from gen_jax.data import encodings, ranks, tokenizer
from gen_jax.types import InputError

Tokenizer = tokenizer.Tokenizer
END_OF_TEXT = encodings.END_OF_TEXT
# What opens and ends a document, where the files do not say.
_MARKS = (
  ("<|startoftext|>", END_OF_TEXT),
  (END_OF_TEXT, END_OF_TEXT),
  ("<|begin_of_text|>", "<|end_of_text|>"),
  ("<s>", "</s>"),
)
_END_OF_TURN = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")
# What a tokenizer must bring back unchanged.
_PROBES = (f"e\u0301\r\n\t  A\x00 日本 🙂{END_OF_TEXT}<s>", "  \u2581x ", "x")


def _marked(encoding: encodings.Encoding) -> Tokenizer:
  """A tokenizer whose marks are those that such control tokens usually are."""
  ids = encoding.specials
  known = (pair for pair in _MARKS if ids.keys() >= set(pair))
  bos, eos = next(known, (None, None))
  return _tokenizer(encoding, bos, eos, (), None)


def _tokenizer(encoding, bos, eos, stops, template, pad=None) -> Tokenizer:
  """From names of tokens to their ids; `stops` are ids beside those that are known."""
  ids = encoding.specials
  for name in (bos, eos):
    if name is not None and name not in ids:
      raise InputError(
        f"{name!r} is said to open or end texts, but is no control token"
      )
  stops = (ids.get(eos), *stops, *(ids.get(name) for name in _END_OF_TURN))
  stops = tuple(dict.fromkeys(stop for stop in stops if stop is not None))
  if pad not in ids:  # it may be an ordinary token
    pieces, name = encoding.pieces, (pad or "").encode()
    pad = pieces.index(name) if name and name in pieces else None
  else:
    pad = ids[pad]
  return Tokenizer(encoding, ids.get(bos), ids.get(eos), stops, template, pad)


def plain_bytes(texts: Iterable[str] = ()) -> Tokenizer:
  """Id = byte, and END_OF_TEXT = 256; `texts` is not looked at."""
  del texts
  return _marked(encodings.plain_bytes())


def characters(texts: Iterable[str]) -> Tokenizer:
  """The sorted characters of the texts, and nothing else: no other can be encoded."""
  alphabet = set()
  for text in texts:
    tokenizer.check_unicode(text)
    alphabet.update(text)
  if not alphabet:
    raise InputError("there is no text to take characters from; give other files")
  return _marked(encodings.Characters("".join(sorted(alphabet))))


def train_bpe(
  texts: Iterable[str], vocab_size: int, specials: tuple[str, ...] = ()
) -> Tokenizer:
  """Byte-level BPE with at most vocab_size tokens. Sennrich et al. 2016; GPT-2.

  Args:
    specials: names of control tokens beside END_OF_TEXT.
  """
  names = [END_OF_TEXT, *specials]
  if vocab_size < 256 + len(names):
    raise InputError(
      f"tokenizer vocab_size={vocab_size} must be at least {256 + len(names)}: 256"
      f" bytes and {', '.join(names)}"
    )
  backend = tokenizers.Tokenizer(tokenizers.models.BPE())
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=names,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  backend.train_from_iterator(texts, trainer)
  return _marked(encodings.hugging_face(backend.to_str().encode()))


def _name_of_token(value: Any) -> str | None:
  return value["content"] if isinstance(value, dict) else value


def _template(config: Mapping[str, Any]) -> str | None:
  """The chat template of a tokenizer_config.json; of several, the default one."""
  template = config.get("chat_template")
  if isinstance(template, list):
    named = {entry["name"]: entry["template"] for entry in template}
    template = named.get("default")
  return template


def _described(encoding: encodings.Encoding, files: Mapping[str, bytes]) -> Tokenizer:
  """A tokenizer whose marks are those that the files beside it name."""
  names = "special_tokens_map.json", "tokenizer_config.json", "generation_config.json"
  parsed = [json.loads(files.get(name, b"{}")) for name in names]
  config, generation = {**parsed[0], **parsed[1]}, parsed[2]
  template = _template(config)
  if "chat_template.jinja" in files:
    template = files["chat_template.jinja"].decode()
  usual = _marked(encoding)
  by_id = {id_: name for name, id_ in encoding.specials.items()}
  bos, eos = (
    _name_of_token(config[key]) if key in config else by_id.get(usual_id)
    for key, usual_id in (("bos_token", usual.bos), ("eos_token", usual.eos))
  )
  stops = generation.get("eos_token_id") or ()
  stops = (stops,) if isinstance(stops, int) else tuple(stops)
  pad = _name_of_token(config.get("pad_token"))
  return _tokenizer(encoding, bos, eos, stops, template, pad)


_BESIDE = (
  "special_tokens_map.json",
  "tokenizer_config.json",
  "generation_config.json",
  "chat_template.jinja",
)
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
  """The files of a tokenizer, by the names that they have in a folder of their own."""
  if path.is_dir():
    home, wanted = path, (*_BESIDE, *_FILES)
  elif path.name in _FILES:
    pair = {"encoder.json": "vocab.bpe", "vocab.json": "merges.txt"}
    pair |= {value: key for key, value in pair.items()}
    partner = pair.get(path.name, "ranks.json")
    home, wanted = path.parent, (*_BESIDE, path.name, partner)
  else:
    home, wanted = path.parent, _BESIDE
  files = {
    name: (home / name).read_bytes() for name in wanted if (home / name).exists()
  }
  if not path.is_dir() and path.name not in files:
    name = "tokenizer.json" if path.suffix == ".json" else "tokenizer.model"
    files[name] = path.read_bytes()
  return files


def _check_lossless(made: Tokenizer) -> None:
  for text in _PROBES:
    if made.decode(made.encode(text)) != text:
      raise InputError(
        f"it does not give back {text!r} as it was; one with all 256 bytes and without"
        " normalisation is needed"
      )


def load(path: pathlib.Path, layout: str | None = None) -> Tokenizer:
  """Reads a tokenizer: a folder, or one file of it.

  Understood are tokenizer.json, GPT-2's encoder.json and vocab.bpe (or vocab.json and
  merges.txt), SentencePiece's and tiktoken's tokenizer.model, and what `save` writes.
  tokenizer_config.json, special_tokens_map.json, generation_config.json and
  chat_template.jinja beside them say which tokens open and end texts.

  Args:
    layout: of a tiktoken file, see `ranks.LAYOUTS`.

  Raises:
    InputError: unreadable, none of these, or one that loses text.
  """
  try:
    files = _read_files(path)
    if layout is not None:
      encoding = ranks.read(files["tokenizer.model"], layout)
    else:
      encoding = encodings.read(files)
    made = _described(encoding, files)
    if not isinstance(encoding, encodings.Characters | encodings.Clip):
      _check_lossless(made)
  except OSError as error:
    raise InputError(f"cannot read tokenizer {path}: {error.strerror}") from None
  except Exception as error:  # the libraries raise many kinds, one a bare Exception
    reason = " ".join(str(error).split()) or type(error).__name__
    raise InputError(
      f"cannot read tokenizer {path}: {reason}; needed is a folder or file of Hugging"
      " Face (tokenizer.json), GPT-2 (encoder.json and vocab.bpe), SentencePiece"
      " (.model) or tiktoken"
    ) from None
  return made


def from_file(texts: Iterable[str], path: str, layout: str | None = None) -> Tokenizer:
  """A tokenizer made elsewhere, see `load`; `texts` is not looked at."""
  del texts
  return load(pathlib.Path(path).expanduser(), layout)
