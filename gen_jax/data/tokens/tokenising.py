"""Token stores: the job, and what a worker makes of the documents of a piece."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from gen_jax.data import cache, tokenizers
from gen_jax.data.tokens import documents, duplicates, folder, foreign, store
from gen_jax.errors import InputError
from gen_jax.system import files

_BATCH = 2**20  # characters of documents held at once
_OPTIONS = ("field", "held_out", "duplicates", "shard_bytes")


@dataclasses.dataclass(frozen=True)
class Job:
  """What a token store is made of; see `making.Job`.

  Attributes:
    paths: see `documents.listed`.
    field: of JSON, Parquet and data sets, with the text.
    held_out: share of the documents that become the validation split.
    duplicates: which copies are dropped: None, 'exact' or 'near'.
    shard_bytes: of the source, in a shard.
  """

  paths: tuple[str, ...]
  tokenizer: tokenizers.Tokenizer
  field: str = "text"
  held_out: float = 0.005
  duplicates: str | None = None
  shard_bytes: int = 2**26

  kind = "tokens"

  def about(self) -> dict[str, Any]:
    own = [p for p in self.paths if not p.startswith(foreign.SCHEMES)]
    return {
      "kind": self.kind,
      "paths": [str(documents.real(path)) for path in self.paths],
      "stamps": files.stamps([documents.file(path) for path in own]),
      "tokenizer": self.tokenizer.fingerprint,
      **{name: getattr(self, name) for name in _OPTIONS},
    }

  def _source(self) -> list[Any]:
    """Names and sizes of the source's files, wherever they lie."""
    own = (p for p in self.paths if not p.startswith(foreign.SCHEMES))
    sizes = {path: documents.file(path).stat().st_size for path in own}
    return [
      [documents.file(p).name if p in sizes else p, sizes.get(p)] for p in self.paths
    ]

  def num_bytes(self) -> int:
    return sum(size or 0 for _, size in self._source())

  def made_of(self) -> dict[str, Any]:
    options = {name: getattr(self, name) for name in _OPTIONS}
    return {
      "source": self._source(), "tokenizer": self.tokenizer.fingerprint, **options
    }  # fmt: skip

  def check(self) -> None:
    documents.plan(self.paths, self.field, self.shard_bytes)

  def prepare(self, home: pathlib.Path) -> None:
    self.tokenizer.save(home / store.TOKENIZER)

  def manifest(self, pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = folder.joined(pieces)
    if not found["splits"]["train"]:
      raise InputError(f"no text in {self.paths[0]!r} for training; give other files")
    return {
      "format": store.FORMAT,
      "dtype": "int32" if self.tokenizer.vocab_size > 2**16 else "uint16",
      **self.made_of(),
      **found,
    }


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
  batch, size = [], 0
  for text in texts:
    batch.append(text)
    size += len(text)
    if size >= _BATCH:
      yield batch
      batch, size = [], 0
  yield batch


def _kept(texts: Iterable[str], copies: np.ndarray | None, digest) -> Iterator[str]:
  """The documents that are no copies; the digest is of all."""
  for i, text in enumerate(texts):
    content = text.encode("utf-8", "surrogatepass")
    digest.update(len(content).to_bytes(8, "little") + content)
    if copies is None or not copies[i]:
      yield text


class Tokenising:
  """Documents to token ids; see `worker.Work`."""

  def __init__(self, place: folder.Folder, about: dict[str, Any]):
    self._place, self._about = place, about
    self._tokenizer = tokenizers.load(place.home / store.TOKENIZER)
    given = about["paths"], about["field"], about["shard_bytes"]
    self.tasks = documents.plan(*given)

  def pieces(
    self, task: documents.Task, wanted: Callable[[int], bool]
  ) -> Iterator[documents.Piece]:
    """See `documents.pieces`."""
    about = self._about
    return documents.pieces(task, about["field"], about["shard_bytes"], wanted)

  def do(self, phase: str, piece: str, items: Iterable[str], progress: Any) -> None:
    """Writes the keys or the shards of a piece."""
    do = {"keys": self._find_keys, "tokens": self._tokenise}[phase]
    do(piece, items, progress)

  def _tokenise(self, piece: str, texts: Iterable[str], progress: Any) -> None:
    copies = self._place.copies_of(piece) if self._about["duplicates"] else None
    digest, held = hashlib.sha256(), []
    share = self._about["held_out"]

    def training() -> Iterator[cache.Tokens]:
      for batch in _batches(_kept(texts, copies, digest)):
        is_out = [share > 0 and duplicates.fraction(text) < share for text in batch]
        parts = [
          [text for text, out in zip(batch, is_out, strict=True) if out == wanted]
          for wanted in (False, True)
        ]
        for chunk in cache.of_documents(parts[1], self._tokenizer):
          held.append(chunk)
          progress.tokens += len(chunk.ids)
        for chunk in cache.of_documents(parts[0], self._tokenizer):
          yield chunk
          progress.tokens += len(chunk.ids)
          progress.note()
        progress.documents += len(batch)

    pairs = zip(store.SPLITS, (training(), held), strict=True)
    splits = self._place.write_shards(piece, pairs)
    made = {"splits": splits, "source_sha256": digest.hexdigest()}
    self._place.add(piece, "tokens", made)

  def _find_keys(self, piece: str, texts: Iterable[str], progress: Any) -> None:
    which = self._about["duplicates"]
    keys = {"exact": duplicates.exact, "near": duplicates.near}[which]
    found = []
    for text in texts:
      found.append(keys(text))
      progress.documents += 1
      progress.note()
    width = {"exact": 1, "near": duplicates.BANDS}[which]
    self._place.write_keys(piece, np.array(found, np.uint64).reshape(-1, width))
