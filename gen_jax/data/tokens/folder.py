"""The folder of a store that is being made, on a disk or in a bucket.

    about.json               the job
    piece-*.keys.npy         keys of the documents of a piece, if copies are dropped
    piece-*.json             a piece that is done: its shards, sizes and hashes
    lock                     held by a command of this machine, of its disk
    *.claim, logs/, ended/   of the workers; a claim is a link to its worker's number

Files are made `here`, on this disk, and sent to `home`, where they stay. Of a store on
this disk both are one folder. Of a bucket `here` is in the cache: what only this
command needs, such as claims, is never sent, and what was not sent is made again.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from gen_jax.data.tokens import indexed
from gen_jax.system import copies, files

ABOUT, LOCK = "about.json", "lock"
_CLAIM, _LOGS = ".claim", "logs"
_ENDED = "ended"  # what workers on a cluster came to: `sweeps.remote`, next to the logs
_COPIES = "copies.npy"  # of all documents, see `duplicates.mark`
_FIRSTS = "copies.json"  # the job, and {piece: its first document}
_SUFFIX = {"keys": ".keys.npy", "tokens": ".json", "images": ".json"}  # by phase
_REQUESTS = 32  # at once, of a bucket


def name(task: int, piece: int) -> str:
  """Of a piece: '00012-00000'."""
  return f"{task:05}-{piece:05}"


def joined(pieces: Iterable[dict[str, Any]]) -> dict[str, Any]:
  """What the pieces of a store hold together: shards, counts, the source's hash."""
  splits: dict[str, list] = {"train": [], "validation": []}
  digest = hashlib.sha256()
  for piece in pieces:
    digest.update(piece["source_sha256"].encode())
    for split, shard in piece["splits"].items():
      splits[split].append(shard)

  def counted(what):
    return {split: sum(x[what] for x in found) for split, found in splits.items()}

  return {
    "source_sha256": digest.hexdigest(),
    "num_tokens": counted("tokens"),
    "num_documents": counted("documents"),
    "splits": splits,
  }


@dataclasses.dataclass(frozen=True)
class Folder:
  """Where a store goes, and where its files are made."""

  home: pathlib.Path

  @property
  def is_local(self) -> bool:
    """Whether the store is on this disk."""
    return files.is_local(self.home)

  @property
  def here(self) -> pathlib.Path:
    """The folder of this disk."""
    if self.is_local:
      return self.home
    digest = hashlib.sha256(str(self.home).encode()).hexdigest()[:32]
    return files.cache_folder("stores") / digest

  def claim(self, what: str, phase: str, worker: str) -> bool:
    """Whether a piece is this worker's: the first to ask for it in this command."""
    path = self.here / f"piece-{what}.{phase}{_CLAIM}"
    with contextlib.suppress(FileExistsError):
      path.symlink_to(worker)  # made with its content, or not at all
    return os.readlink(path) == worker  # also of one that was started again

  def forget_workers(self) -> None:
    """Removes the claims of a command that was killed, and how far it was."""
    for pattern in (f"*{_CLAIM}", f"{_LOGS}/*.json"):
      for path in self.here.glob(pattern):
        path.unlink(missing_ok=True)

  def log(self, phase: str, worker: int, kind: str) -> pathlib.Path:
    """What a worker prints (kind 'txt'), and how far it is ('json')."""
    (self.here / _LOGS).mkdir(exist_ok=True)
    return self.here / _LOGS / f"{phase}-{worker}.{kind}"

  def done(self, phase: str) -> list[str]:
    """Names of the pieces that are done, in order; by one listing."""
    suffix = _SUFFIX[phase]
    found = (n for n in files.sizes(self.home) if n.startswith("piece-"))
    names = (n.removeprefix("piece-").partition(".") for n in found)
    return sorted(what for what, dot, rest in names if dot + rest == suffix)

  def send(self, name: str) -> None:
    """Moves a file that is whole from here to the bucket."""
    if not self.is_local:
      copies.copy(self.here / name, self.home / name)
      (self.here / name).unlink()

  def add(self, piece: str, phase: str, made: dict[str, Any]) -> None:
    """Notes that a piece is done, after its shards were sent."""
    files.write_json(self.home / f"piece-{piece}{_SUFFIX[phase]}", files.sealed(made))

  def write_shards(
    self, piece: str, splits: Iterable[tuple[str, Iterable]]
  ) -> dict[str, dict[str, Any]]:
    """Writes the chunks of each split, see `indexed.write`; returns the entries."""
    found = {}
    for split, chunks in splits:
      shard = f"{split}-{piece}"
      written = indexed.write(self.here / shard, chunks)
      for suffix in ("bin", "idx"):
        if written.documents:
          self.send(f"{shard}.{suffix}")
        else:
          (self.here / f"{shard}.{suffix}").unlink()
      if written.documents:
        found[split] = {"name": shard, **written._asdict()}
    return found

  def write_keys(self, piece: str, keys: np.ndarray) -> None:
    """Notes the keys of the documents of a piece."""
    name = f"piece-{piece}{_SUFFIX['keys']}"
    np.save(content := io.BytesIO(), keys)  # into a file it hides why a disk refuses
    files.write_bytes(self.here / name, content.getvalue())
    self.send(name)

  def pieces(self, phase: str) -> list[dict[str, Any]]:
    """What `add` noted of all pieces, in order."""
    paths = [self.home / f"piece-{what}{_SUFFIX[phase]}" for what in self.done(phase)]
    return self._each(files.read_sealed, paths)

  def _each(self, do: Callable, items: Iterable) -> list:
    """`map`; in a bucket, whose answers take time, many at once."""
    with concurrent.futures.ThreadPoolExecutor(_REQUESTS) as pool:
      return list(map(do, items) if self.is_local else pool.map(do, items))

  def _job(self) -> str:
    return files.value_sha256(files.read_json(self.home / ABOUT))

  def is_marked(self) -> bool:
    """Whether `mark_copies` is done, for this job and no other at this address."""
    path = self.here / _FIRSTS
    return path.exists() and files.read_json(path)["job"] == self._job()

  def mark_copies(self, mark: Callable[..., list[int]]) -> None:
    """Notes which documents are copies, by the keys of all; `duplicates.mark`."""
    done = self.done("keys")
    names = [f"piece-{what}{_SUFFIX['keys']}" for what in done]
    if not self.is_local:
      self._each(lambda n: copies.copy(self.home / n, self.here / n), names)
    sizes = mark([self.here / n for n in names], self.here / _COPIES)
    firsts, first = {}, 0
    for what, size in zip(done, sizes, strict=True):
      firsts[what] = first
      first += size
    files.write_json(self.here / _FIRSTS, {"job": self._job(), "firsts": firsts})

  def copies_of(self, piece: str) -> np.ndarray:
    """bool, whether the documents from a piece's first on are copies."""
    first = files.read_json(self.here / _FIRSTS)["firsts"][piece]
    return np.load(self.here / _COPIES, mmap_mode="r")[first:]

  def finish(self, path: pathlib.Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest: the store is whole.

    Raises:
      FileExistsError: another command has finished this store of a bucket. Its manifest
        stays, for pieces may have been cleared away while this one's was made.
    """
    content = files.sealed(manifest)
    if self.is_local:
      files.write_json(path, content)
    else:
      path.create(f"{json.dumps(files.finite(content), indent=2)}\n".encode())

  def clear(self) -> None:
    """Removes what only an unfinished store needs; the job last."""
    rest = [n for n in files.sizes(self.home) if n.startswith("piece-")]
    self._each(lambda n: (self.home / n).unlink(missing_ok=True), rest)
    (self.home / ABOUT).unlink(missing_ok=True)
    if not self.is_local:
      copies.remove(self.here)
      return
    self.forget_workers()
    for path in self.here.glob("*.partial"):
      path.unlink()
    for name in (_LOGS, _ENDED, _COPIES, _FIRSTS, LOCK):
      copies.remove(self.here / name)

  def abandon(self) -> None:
    """Removes a store in which nothing is made."""
    for path in {self.home, self.here}:
      copies.remove(path)
