"""Ranks files of the `tiktoken` library: byte-level BPE without a list of merges.

A line is a piece of text in base64 and its id. How text is cut into words, and which
control tokens follow, the file does not say: that is a `Layout`.
"""

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence

import tiktoken

from gen_jax.types import unknown

END_OF_TEXT = "<|endoftext|>"
_GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Llama 3.1 and later; what 3.0 has in these places, nobody ever trained.
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


@dataclasses.dataclass(frozen=True)
class Layout:
  """What a ranks file does not say.

  Attributes:
    words: the pattern that cuts text into words.
    specials: names of the control tokens, which follow the ranks.
  """

  words: str
  specials: tuple[str, ...]


LAYOUTS = {
  "gpt2": Layout(_GPT2_WORDS, (END_OF_TEXT,)),
  "llama3": Layout(_LLAMA3_WORDS, _LLAMA3_SPECIALS),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Ranks:
  """A ranks file of the `tiktoken` library. See `read`."""

  source: bytes
  layout: str
  backend: tiktoken.Encoding
  pieces: Sequence[bytes]
  specials: Mapping[str, int]

  prefix = inner_prefix = ""

  def encode(self, text: str) -> list[int]:
    return self.backend.encode_ordinary(text)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return self.backend.encode_ordinary_batch(list(texts))

  def files(self) -> dict[str, bytes]:
    layout = json.dumps({"layout": self.layout}).encode()
    return {"tokenizer.model": self.source, "ranks.json": layout}


def read(source: bytes, layout: str | None = None) -> Ranks:
  """Reads the content of a ranks file: on each line a piece in base64 and its id.

  Args:
    layout: a name of LAYOUTS; None takes llama3 where there are as many ranks as in
      Llama 3, else gpt2.

  Raises:
    ValueError: not such a file.
    InputError: unknown layout.
  """
  table = {}
  for line in source.split(b"\n"):
    if line:
      piece, rank = line.split()
      table[base64.b64decode(piece, validate=True)] = int(rank)
  size = len(table)
  if sorted(table.values()) != list(range(size)):
    raise ValueError("its ranks are not 0, 1, 2, ...")
  if not table.keys() >= {bytes([byte]) for byte in range(256)}:
    raise ValueError("some of the 256 bytes have no rank")
  layout = layout or ("llama3" if size == 128_000 else "gpt2")
  if layout not in LAYOUTS:
    raise unknown("layout (of tokenizer ranks)", layout, LAYOUTS)
  words, names = LAYOUTS[layout].words, LAYOUTS[layout].specials
  specials = {name: size + i for i, name in enumerate(names)}
  backend = tiktoken.Encoding(
    layout, pat_str=words, mergeable_ranks=table, special_tokens=specials
  )
  pieces = [*sorted(table, key=table.__getitem__), *(b"" for _ in names)]
  return Ranks(source, layout, backend, pieces, specials)
