"""Process I of N that make the pieces of a store: python -m ... STORE PHASE N I.

STORE/about.json describes the job. Each process claims the next piece that is free, by
making a link; one that is started again still has its claims. Finished pieces stand on
their own: a shard of each split, then PIECE.json with their sizes and hashes. A piece
with that file is never made again, so a process that is killed loses at most one piece.
Pieces do not depend on the number of processes. Exits with 0, or with 2 and the reason
on stderr.
"""

import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from gen_jax import errors
from gen_jax.data.stored import packing
from gen_jax.data.tokens import documents, folder, tokenising
from gen_jax.errors import InputError
from gen_jax.system import files

_EVERY_SECS = 1.0


class Work(Protocol):
  """What is made of a corpus, by the kind of its store.

  Attributes:
    tasks: of the corpus, in order.
  """

  tasks: list[documents.Task]

  def pieces(
    self, task: documents.Task, wanted: Callable[[int], bool]
  ) -> Iterator[documents.Piece]:
    """The wanted pieces of a task; see `documents.pieces`."""

  def do(self, phase: str, piece: str, items: Iterable, progress: Any) -> None:
    """Does a phase of a piece, and notes in its folder that it is done."""


KINDS: dict[str, Callable[[folder.Folder, dict], Work]] = {
  "tokens": tokenising.Tokenising,
  "images": packing.Packing,
}


class Progress:
  """What this process has done, noted in a file every second."""

  def __init__(self, path: pathlib.Path):
    self._path, self._due = path, 0.0
    self.tokens = self.documents = self.bytes = 0

  def note(self, *, at_once: bool = False) -> None:
    """Writes it, if it is time."""
    if at_once or time.monotonic() >= self._due:
      self._due = time.monotonic() + _EVERY_SECS
      done = {k: v for k, v in vars(self).items() if not k.startswith("_")}
      files.write_json(self._path, done)


def run(home: pathlib.Path, phase: str, num: int, index: int) -> None:
  """Does missing pieces until none is free."""
  place = folder.Folder(home)

  def claim(what: str) -> bool:  # those of another number of workers are forgotten
    return place.claim(what, f"{phase}-{num}", str(index))

  about = files.read_json(place.home / folder.ABOUT)
  work = KINDS[about["kind"]](place, about)
  done, progress = set(place.done(phase)), Progress(place.log(phase, index, "json"))
  for number, task in enumerate(work.tasks):
    # Streams and tars are not read by all, if there are enough of them.
    is_alone = task.is_for_one and len(work.tasks) >= num
    if is_alone and not claim(f"{number:05}"):
      continue

    def wanted(piece: int, number=number, is_alone=is_alone) -> bool:
      what = folder.name(number, piece)
      return what not in done and (is_alone or claim(what))

    before, share, made = progress.bytes, 1 if is_alone else num, 0
    for piece in work.pieces(task, wanted):
      progress.bytes = before + piece.at_byte // share
      work.do(phase, folder.name(number, piece.number), piece.items, progress)
      progress.note()
      made += 1
    if task.is_whole:  # all have read it together
      progress.bytes = before + task.size // share
    elif made:
      progress.bytes = before + task.size
  progress.note(at_once=True)


def main(argv: list[str]) -> int:
  """The process; see above."""
  home, phase, num, index = argv
  try:
    run(files.path(home, "--to"), phase, int(num), int(index))
    return 0
  except InputError as error:
    said = str(error)
  except OSError as error:
    said = ("" if error.filename else f"--to {home}: ") + errors.refused(error)
  print(said, file=sys.stderr, flush=True)
  return 2


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
