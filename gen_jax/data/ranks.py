"""Ranks files of the `tiktoken` library: byte-level BPE without a list of merges.

A line is a piece of text in base64 and its id. Pre-tokenisation and control tokens are
not in the file but in its `TiktokenLayout`.
"""

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from gen_jax import errors
from gen_jax.data import encoding
from gen_jax.errors import InputError, unknown

END_OF_TEXT = "<|endoftext|>"
_R50K_WORDS = (
  r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
)
_CL100K_WORDS = (
  r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
  r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_AROUND = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K_WORDS = (
  f"{_AROUND[0]}{_UPPER}*{_LOWER}+{_AROUND[1]}|{_AROUND[0]}{_UPPER}+{_LOWER}*{_AROUND[1]}"
  r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Llama 3.1 and later; 3.0 has untrained tokens with these ids.
_LLAMA3_SPECIALS = (
  "<|begin_of_text|>",
  "<|end_of_text|>",
  "<|reserved_special_token_0|>",
  "<|reserved_special_token_1|>",
  "<|finetune_right_pad_id|>",
  "<|step_id|>",
  "<|start_header_id|>",
  "<|end_header_id|>",
  "<|eom_id|>",
  "<|eot_id|>",
  "<|python_tag|>",
  *(f"<|reserved_special_token_{i}|>" for i in range(2, 247)),
)
_FIM = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
_HARMONY = {
  199_998: "<|startoftext|>",
  199_999: END_OF_TEXT,
  200_002: "<|return|>",
  200_003: "<|constrain|>",
  200_005: "<|channel|>",
  200_006: "<|start|>",
  200_007: "<|end|>",
  200_008: "<|message|>",
  200_012: "<|call|>",
  200_018: "<|endofprompt|>",
}


def _numbered(names: Sequence[str], start: int) -> dict[str, int]:
  return {name: i for i, name in enumerate(names, start)}


def _harmony() -> dict[str, int]:
  """Control tokens of o200k_harmony. 200,018 has a second, reserved name."""
  reserved = {i: f"<|reserved_{i}|>" for i in range(200_000, 201_088)}
  ids = {name: i for i, name in ({**reserved, **_HARMONY}).items()}
  return {**ids, reserved[200_018]: 200_018}


@dataclasses.dataclass(frozen=True)
class TiktokenLayout:
  """What a ranks file does not hold.

  Attributes:
    words: regex of pre-tokenisation.
    num_ranks: number of ranks of the published file.
    specials: {name: id} of the control tokens.
    opening: name of the control token that opens texts.
  """

  words: str
  num_ranks: int
  specials: Mapping[str, int]
  opening: str | None = None


_GPT2 = TiktokenLayout(_R50K_WORDS, 50_256, {END_OF_TEXT: 50_256})
# Source: tiktoken_ext/openai_public.py of tiktoken 0.14; Meta's llama3/tokenizer.py.
# The first layout with a file's number of ranks is its default.
LAYOUTS = {
  "r50k_base": _GPT2,
  "gpt2": _GPT2,
  "p50k_base": TiktokenLayout(_R50K_WORDS, 50_280, {END_OF_TEXT: 50_256}),
  "p50k_edit": TiktokenLayout(
    _R50K_WORDS, 50_280, {END_OF_TEXT: 50_256, **_numbered(_FIM, 50_281)}
  ),
  "cl100k_base": TiktokenLayout(
    _CL100K_WORDS,
    100_256,
    {**_numbered((END_OF_TEXT, *_FIM), 100_257), "<|endofprompt|>": 100_276},
  ),
  "o200k_base": TiktokenLayout(
    _O200K_WORDS, 199_998, {END_OF_TEXT: 199_999, "<|endofprompt|>": 200_018}
  ),
  "o200k_harmony": TiktokenLayout(_O200K_WORDS, 199_998, _harmony()),
  "llama3": TiktokenLayout(
    _LLAMA3_WORDS, 128_000, _numbered(_LLAMA3_SPECIALS, 128_000), "<|begin_of_text|>"
  ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Ranks(encoding.Plain):
  """A ranks file of the `tiktoken` library. See `read`."""

  source: bytes
  layout: str
  backend: Any  # tiktoken.Encoding
  pieces: Sequence[bytes]
  specials: Mapping[str, int]
  opening: tuple[int, ...]

  def encode(self, text: str) -> list[int]:
    return self.backend.encode_ordinary(text)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return self.backend.encode_ordinary_batch(list(texts))

  def files(self) -> dict[str, bytes]:
    layout = json.dumps({"layout": self.layout}).encode()
    return {"tokenizer.model": self.source, "ranks.json": layout}


def _published(num_ranks: int) -> str:
  """The published layout with this number of ranks."""
  for name, layout in LAYOUTS.items():
    if layout.num_ranks == num_ranks:
      return name
  known = ", ".join(f"{name} ({each.num_ranks})" for name, each in LAYOUTS.items())
  raise InputError(
    f"its {num_ranks} ranks are of no published encoding, and the file has no"
    f" pre-tokenisation: name a layout (data.tokenizer.layout), one of {known}"
  )


def _table(source: bytes) -> dict[bytes, int]:
  table = {}
  for line in source.split(b"\n"):
    if line:
      piece, rank = line.split()
      table[base64.b64decode(piece, validate=True)] = int(rank)
  return table


def read(source: bytes, layout: str | None = None) -> Ranks:
  """Reads a ranks file: on each line a piece in base64 and its id.

  Args:
    layout: a name of LAYOUTS; None takes the published one for this number of ranks.
      With another number of ranks, the control tokens still follow the ranks.

  Raises:
    ValueError: not such a file.
    InputError: unknown layout, or one that must be named.
  """
  table = _table(source)
  if not table.keys() >= {bytes([byte]) for byte in range(256)}:
    raise ValueError("some of the 256 bytes have no rank")
  layout = _published(len(table)) if layout is None else layout
  if layout not in LAYOUTS:
    raise unknown("layout (of tokenizer ranks)", layout, LAYOUTS)
  chosen = LAYOUTS[layout]
  shift = len(table) - chosen.num_ranks
  specials = {name: id_ + shift for name, id_ in chosen.specials.items()}
  ranks, taken = sorted(table.values()), set(specials.values())
  encoding.check_ids(ranks)
  if ranks != [i for i in range(ranks[-1] + 1) if i not in taken]:
    raise ValueError(f"its ranks are not 0, 1, 2, ... as in layout {layout}")
  with errors.extra("hub"):
    import tiktoken
  backend = tiktoken.Encoding(
    layout, pat_str=chosen.words, mergeable_ranks=table, special_tokens=specials
  )
  pieces = [b""] * (max(ranks[-1], *taken) + 1)
  for piece, rank in table.items():
    pieces[rank] = piece
  opening = (specials[chosen.opening],) if chosen.opening else ()
  return Ranks(source, layout, backend, pieces, specials, opening)
