"""The interface of every tokenizer format in `data.encodings`."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol


class Encoding(Protocol):
  """Text to ids in one format.

  Attributes:
    pieces: the bytes of text of each id; empty for control tokens.
    specials: {name: id} of the control tokens. Text never encodes to one.
    patterns: {name: regex} of control tokens that match more than their name, such as
      white space around it.
    prefix: what the format prepends to every text: SentencePiece's space, or nothing.
    opening: ids that the format's library puts before a text.
    closing: ids that it puts after a text.
  """

  pieces: Sequence[bytes]
  specials: Mapping[str, int]
  patterns: Mapping[str, str]
  prefix: str
  opening: tuple[int, ...]
  closing: tuple[int, ...]

  def encode(self, text: str) -> list[int]:
    """Ids of a text, nothing added."""

  def encode_inner(self, text: str) -> list[int]:
    """Ids of text that follows a control token."""

  def encode_rest(self, text: str) -> list[int]:
    """Ids of text that continues other text."""

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of many texts."""

  def files(self) -> dict[str, bytes]:
    """{file name: content} from which `read` makes this encoding."""

  def settings(self) -> dict[str, Any]:
    """Entries that tokenizer_config.json needs with these files."""


def prefix(encode: Callable[[str], list[int]], pieces: Sequence[bytes]) -> str:
  """What a format prepends to every text: a space, or nothing."""
  return " " if b"".join(pieces[i] for i in encode("a")) == b" a" else ""


class Plain:
  """Base of formats that add nothing to texts."""

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
  """Raises ValueError if the largest id is far beyond the number of entries."""
  if max(ids) >= 2 * len(ids) + 1024:
    raise ValueError(f"id {max(ids)} is far beyond its {len(ids)} entries")
