"""One of N processes that tokenise the pieces of a corpus: python -m ... STORE PHASE N.

STORE/about.json describes the job. Each process claims the next piece that is free, by
making a file. Finished pieces stand on their own: a shard of each split, then
PIECE.json with their sizes and hashes. A piece with that file is never made again, so a
process that is killed loses at most one piece. Pieces do not depend on the number of
processes.

    stdout    one JSON line a second: tokens, documents and bytes of the source done
    exit      0, or 2 with the reason on stderr
"""

import ctypes
import hashlib
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gen_jax.data import cache, tokenizers
from gen_jax.data.tokens import documents, duplicates, indexed, store
from gen_jax.system import files
from gen_jax.types import InputError

_BATCH = 2**20  # characters of documents held at once
_EVERY_SECS = 1.0


def name(task: int, piece: int) -> str:
  """Of a piece: '00012-00000'."""
  return f"{task:05}-{piece:05}"


def record(home: pathlib.Path, piece: str, phase: str) -> pathlib.Path:
  """The file that says a piece is done."""
  suffix = {"keys": "keys.npy", "tokens": "json"}[phase]
  return home / f"piece-{piece}.{suffix}"


def _claim(home: pathlib.Path, what: str, phase: str) -> bool:
  """Whether this process is the first to ask for it in this command."""
  try:
    (home / f"piece-{what}.{phase}{CLAIM}").touch(exist_ok=False)
  except FileExistsError:
    return False
  return True


CLAIM = ".claim"
COPIES = "copies.npy"  # of all documents, see `duplicates.mark`
FIRSTS = "copies.json"  # {piece: its first document}


class _Progress:
  """What this process has done, told every second."""

  def __init__(self):
    self.tokens = self.documents = self.bytes = 0
    self._due = 0.0

  def tell(self, *, at_once: bool = False) -> None:
    if at_once or time.monotonic() >= self._due:
      self._due = time.monotonic() + _EVERY_SECS
      print(json.dumps([self.tokens, self.documents, self.bytes]), flush=True)


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


def _tokenise(
  home: pathlib.Path,
  about: dict[str, Any],
  tokenizer: tokenizers.Tokenizer,
  piece: str,
  texts: Iterable[str],
  progress: _Progress,
) -> None:
  """Writes the shards of a piece, and then its record."""
  copies = None
  if about["duplicates"]:
    first = files.read_json(home / FIRSTS)[piece]
    copies = np.load(home / COPIES, mmap_mode="r")[first:]
  digest, held = hashlib.sha256(), []
  share = about["held_out"]

  def training() -> Iterator[cache.Tokens]:
    for batch in _batches(_kept(texts, copies, digest)):
      is_out = [share > 0 and duplicates.fraction(text) < share for text in batch]
      parts = [
        [text for text, out in zip(batch, is_out, strict=True) if out == wanted]
        for wanted in (False, True)
      ]
      held.extend(cache.of_documents(parts[1], tokenizer))
      for chunk in cache.of_documents(parts[0], tokenizer):
        yield chunk
        progress.tokens += len(chunk.ids)
        progress.tell()
      progress.documents += len(batch)

  found = {}
  for split, chunks in zip(store.SPLITS, (training(), held), strict=True):
    shard = f"{split}-{piece}"
    written = indexed.write(home / shard, chunks)
    if written.documents:
      found[split] = {"name": shard, **written._asdict()}
    else:
      for suffix in ("bin", "idx"):
        (home / f"{shard}.{suffix}").unlink()
  content = {"splits": found, "source_sha256": digest.hexdigest()}
  files.write_json(record(home, piece, "tokens"), files.sealed(content))


def _find_keys(
  home: pathlib.Path, about: dict[str, Any], piece: str, texts: Iterable[str], progress
) -> None:
  """Writes the keys of the documents of a piece."""
  keys = {"exact": duplicates.exact, "near": duplicates.near}[about["duplicates"]]
  found = []
  for text in texts:
    found.append(keys(text))
    progress.documents += 1
    progress.tell()
  width = {"exact": 1, "near": duplicates.BANDS}[about["duplicates"]]
  with files.replacing(record(home, piece, "keys")) as partial:
    with partial.open("wb") as file:
      np.save(file, np.array(found, np.uint64).reshape(-1, width))


def run(home: pathlib.Path, phase: str, num: int) -> None:
  """Does missing pieces until none is free."""
  about = files.read_json(home / store.ABOUT)
  tokenizer = tokenizers.load(home / store.TOKENIZER)
  size, field = about["shard_bytes"], about["field"]
  tasks = documents.plan(about["paths"], field, size)
  progress = _Progress()
  for number, task in enumerate(tasks):
    # Streams from a network are not read by all, if there are enough of them.
    is_alone = task.is_remote and len(tasks) >= num
    if is_alone and not _claim(home, f"{number:05}", phase):
      continue

    def wanted(piece: int, number=number, is_alone=is_alone) -> bool:
      what = name(number, piece)
      is_done = record(home, what, phase).exists()
      return not is_done and (is_alone or _claim(home, what, phase))

    before, share, made = progress.bytes, 1 if is_alone else num, 0
    for piece in documents.pieces(task, field, size, wanted):
      progress.bytes = before + piece.at_byte // share
      given = home, about
      if phase == "keys":
        _find_keys(*given, name(number, piece.number), piece.texts, progress)
      else:
        of_task = name(number, piece.number)
        _tokenise(*given, tokenizer, of_task, piece.texts, progress)
      progress.tell()
      made += 1
    if task.is_whole:  # all have read it together
      progress.bytes = before + task.size // share
    elif made:
      progress.bytes = before + task.size
  progress.tell(at_once=True)


def main(argv: list[str]) -> int:
  """The process; ends with the one that started it."""
  ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG of Linux
  if os.getppid() != int(argv[3]):
    return os.EX_TEMPFAIL
  try:
    run(pathlib.Path(argv[0]), argv[1], int(argv[2]))
  except InputError as error:
    print(error, file=sys.stderr, flush=True)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
