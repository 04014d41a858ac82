"""How text becomes ids: what every format of `data.encodings` gives."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol


class Encoding(Protocol):
  """How a format turns text into ids.

  Attributes:
    pieces: the bytes of text that each id stands for; none for control tokens.
    specials: {name: id} of the control tokens. Text never encodes to one.
    patterns: {name: regex} of control tokens that take more than their name, such as
      the white space around them.
    prefix: what the format writes before every text: SentencePiece's space, or nothing.
    opening: ids that the format's library puts before a text ...
    closing: ... and after it.
  """

  pieces: Sequence[bytes]
  specials: Mapping[str, int]
  patterns: Mapping[str, str]
  prefix: str
  opening: tuple[int, ...]
  closing: tuple[int, ...]

  def encode(self, text: str) -> list[int]:
    """Ids of a text, nothing added."""
    ...

  def encode_inner(self, text: str) -> list[int]:
    """Ids of text that follows a control token."""
    ...

  def encode_rest(self, text: str) -> list[int]:
    """Ids of text that continues other text."""
    ...

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of many texts."""
    ...

  def files(self) -> dict[str, bytes]:
    """What `read` makes this encoding of, by file name."""
    ...

  def settings(self) -> dict[str, Any]:
    """What tokenizer_config.json must say next to these files."""
    ...


def prefix(encode: Callable[[str], list[int]], pieces: Sequence[bytes]) -> str:
  """What a format writes before every text: a space, or nothing."""
  return " " if b"".join(pieces[i] for i in encode("a")) == b" a" else ""


class Plain:
  """What formats have in common that add nothing to texts."""

  patterns: Mapping[str, str] = {}
  prefix, opening, closing = "", (), ()

  def settings(self) -> dict[str, Any]:
    return {}

  def encode_inner(self, text: str) -> list[int]:
    return self.encode(text)

  def encode_rest(self, text: str) -> list[int]:
    return self.encode(text)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return [self.encode(text) for text in texts]


def check_ids(ids: Collection[int]) -> None:
  """Raises ValueError where ids leave so many gaps that they cannot be meant."""
  if max(ids) >= 2 * len(ids) + 1024:
    raise ValueError(f"id {max(ids)} is far beyond its {len(ids)} entries")
