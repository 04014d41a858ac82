"""Image stores: the job, and what a worker makes of the images of a piece."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from gen_jax.data import image_files
from gen_jax.data.stored import captioned, records
from gen_jax.data.tokens import documents, folder, store
from gen_jax.errors import InputError

_OPTIONS = ("held_out", "duplicates", "shard_bytes")


def _hash(content: bytes, salt: bytes = b"") -> int:
  """64 bits."""
  digest = hashlib.blake2b(content, digest_size=8, key=salt).digest()
  return int.from_bytes(digest, "little")


@dataclasses.dataclass(frozen=True)
class Job:
  """What an image store is made of; see `making.Job`.

  Attributes:
    paths: see `captioned.listed`.
    held_out: share of the images that become the validation split, by their hash.
    duplicates: None, or 'exact': images of an earlier one's bytes are dropped.
    shard_bytes: of encoded images, in a shard.
  """

  paths: tuple[str, ...]
  fields: captioned.Fields = captioned.Fields()
  held_out: float = 0.01
  duplicates: str | None = None
  shard_bytes: int = 2**26

  kind = "images"

  def about(self) -> dict[str, Any]:
    stamps, _ = captioned.stamps(self.paths, self.fields)
    return {
      "kind": self.kind,
      "paths": [str(documents.real(path)) for path in self.paths],
      "stamps": stamps,
      "fields": list(self.fields),
      "class_names": captioned.class_names(self.paths, self.fields),
      **{name: getattr(self, name) for name in _OPTIONS},
    }

  def made_of(self) -> dict[str, Any]:
    _, source = captioned.stamps(self.paths, self.fields)
    options = {name: getattr(self, name) for name in _OPTIONS}
    return {"source": source, "fields": list(self.fields), **options}

  def num_bytes(self) -> int:
    return sum(size or 0 for _, size in self.made_of()["source"])

  def check(self) -> None:
    captioned.plan(self.paths, self.fields, self.shard_bytes)

  def prepare(self, home: pathlib.Path) -> None:
    """Nothing but shards is needed."""

  def manifest(self, pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = folder.joined(pieces)
    for split, num in found["num_documents"].items():
      if not num and (split == "train" or self.held_out):
        raise InputError(
          f"no image of {self.paths[0]!r} is in the split {split!r}; give more images,"
          " or another --held_out"
        )
    names = captioned.class_names(self.paths, self.fields)
    num = max(piece["num_classes"] for piece in pieces)
    if names is None and num:
      names = [str(i) for i in range(num)]
    return {
      "format": store.FORMAT,
      "kind": self.kind,
      "dtype": records.DTYPE,
      **self.made_of(),
      **({"class_names": names} if names else {}),
      "num_bytes": found.pop("num_tokens"),
      "num_images": found.pop("num_documents"),
      **found,
    }


class Packing:
  """Images to records; see `worker.Work`."""

  def __init__(self, place: folder.Folder, about: dict[str, Any]):
    self._place, self._about = place, about
    self._fields = captioned.Fields(*about["fields"])
    self._names = about["class_names"]
    self.tasks = captioned.plan(about["paths"], self._fields, about["shard_bytes"])

  def pieces(
    self, task: documents.Task, wanted: Callable[[int], bool]
  ) -> Iterator[documents.Piece]:
    """See `documents.pieces`."""
    return captioned.pieces(task, self._fields, self._about["shard_bytes"], wanted)

  def do(
    self, phase: str, piece: str, items: Iterable[captioned.Captioned], progress: Any
  ) -> None:
    """Writes the keys or the shards of a piece."""
    do = {"keys": self._find_keys, "images": self._pack}[phase]
    do(piece, items, progress)

  def _find_keys(self, piece: str, items, progress: Any) -> None:
    found = []
    for item in items:
      found.append(_hash(item.content))
      progress.documents += 1
      progress.note()
    self._place.write_keys(piece, np.array(found, np.uint64).reshape(-1, 1))

  def _record(self, item: captioned.Captioned) -> dict[str, Any]:
    """What is kept of an image; InputError if it cannot be decoded."""
    image_files.decoded(item.content, item.where)
    label, caption = item.label, item.caption
    if isinstance(label, str):
      label = self._names.index(label)
    if self._names and label is not None and label >= len(self._names):
      raise InputError(
        f"{item.where} is of class {label}, and there are {len(self._names)}"
      )
    if caption is None:
      caption = self._names[label] if self._names else str(label)
    record = {"image": item.content, "caption": caption}
    return record if label is None else {**record, "label": label}

  def _pack(self, piece: str, items, progress: Any) -> None:
    copies = self._place.copies_of(piece) if self._about["duplicates"] else None
    digest, held, num_classes = hashlib.sha256(), [], 0
    share = self._about["held_out"]

    def training() -> Iterator[dict[str, Any]]:
      nonlocal num_classes
      for i, item in enumerate(items):
        if copies is not None and copies[i]:
          continue
        record = self._record(item)
        told = hashlib.sha256(item.content).digest(), record["caption"]
        digest.update(repr((*told, record.get("label"))).encode())
        num_classes = max(num_classes, record.get("label", -1) + 1)
        by_hash = _hash(item.content, b"held out") < share * 2**64
        split = item.split or ("validation" if by_hash else "train")
        if split == "validation":
          held.append(record)
        else:
          yield record
        progress.documents += 1
        progress.note()

    def validation() -> Iterator[dict[str, Any]]:
      yield from held  # filled by now

    both = (records.chunks(part()) for part in (training, validation))
    splits = self._place.write_shards(piece, zip(store.SPLITS, both, strict=True))
    made = {"splits": splits, "source_sha256": digest.hexdigest()}
    self._place.add(piece, self._about["kind"], {**made, "num_classes": num_classes})
