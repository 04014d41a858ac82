"""Documents of a corpus, in pieces that several processes read independently.

A corpus is a list of files: lines of JSON (.jsonl), text (.txt and whatever is of no
other format; a file is a document), either also as .gz or .zst, Parquet (.parquet), and
tar files in the manner of WebDataset (.tar). It may also be a data set of Hugging Face
("hf:NAME"), read as a stream, or of TFDS ("tfds:NAME").

The corpus is cut into tasks, and these into pieces of about `size` bytes, by the source
alone: whoever reads a piece, and when, gets the same documents. What can be read from
the middle is one piece a task. What cannot (compressed files, tars, streams) is read
from its beginning by every process, which parses its own pieces only.
"""

import contextlib
import functools
import gzip
import io
import itertools
import pathlib
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

from gen_jax.data.tokens import foreign
from gen_jax.errors import InputError, first_line
from gen_jax.system import files, globs

_LINES = (".jsonl", ".ndjson", ".json")
_PACKED = (".gz", ".zst", ".zstd")
LARGEST = 2**26  # bytes of a document of a compressed text


class Part(NamedTuple):
  """A part of a file.

  Attributes:
    start, stop: bytes, of the lines that begin in them, or row groups; stop is None
      for what is read from its beginning.
    size: bytes on disk, for the time that is left.
  """

  path: str
  start: int
  stop: int | None
  size: int


class Task(NamedTuple):
  """Parts that make one piece, or one whole that makes as many as come."""

  parts: tuple[Part, ...]

  @property
  def is_whole(self) -> bool:
    """Whether it is read from its beginning, piece after piece."""
    return self.parts[0].stop is None

  @property
  def is_for_one(self) -> bool:
    """Whether others had better not read it too: of a network, or passed over."""
    return kind(self.parts[0].path) in ("hf", ".tar")

  @property
  def size(self) -> int:
    """Bytes on disk."""
    return sum(part.size for part in self.parts)


class Piece(NamedTuple):
  """Documents of a piece of a task; to be read before the next piece is asked for.

  Attributes:
    number: 0, 1, ... in its task.
    items: the documents, read while they are iterated over.
    at_byte: how far a whole has been read where the piece begins.
  """

  number: int
  items: Iterable
  at_byte: int


def listed(source: str, subset: str | None, split: str) -> list[str]:
  """The files of a path, glob or folder, or the name of a data set.

  Args:
    subset, split: of a data set.

  Raises:
    InputError: there are none.
  """
  if source.startswith(foreign.SCHEMES):
    return [foreign.named(source, subset, split)]
  path = files.path(source, "--source")
  found = globs.matching(str(path / "**" / "*") if path.is_dir() else source)
  return [str(p) for p in found if not p.name.startswith((".", "_"))]


def file(path: str) -> pathlib.Path:
  """A file that `listed` has named, on a disk or in a bucket."""
  return files.path(path, "--source")


def real(path: str) -> str | pathlib.Path:
  """What `listed` has named, without links; a data set by its name."""
  return path if path.startswith(foreign.SCHEMES) else file(path).resolve()


def kind(path: str) -> str:
  """'lines', 'text', '.parquet', '.tar', or the scheme of a data set."""
  if path.startswith(foreign.SCHEMES):
    return path.split(":")[0]
  name = pathlib.Path(path)
  suffixes = [s.lower() for s in name.suffixes if s.lower() not in _PACKED]
  last = suffixes[-1] if suffixes else ""
  if last in (".parquet", ".tar"):
    return last
  return "lines" if last in _LINES else "text"


def _is_packed(path: str) -> bool:
  return path.lower().endswith(_PACKED)


class Tasks:
  """Parts in tasks of about `size` bytes, in order.

  Attributes:
    found: the tasks that are complete.
    held: bytes of the parts of the next one.
  """

  def __init__(self, size: int):
    self.found: list[Task] = []
    self._size, self._group, self.held = size, [], 0

  def close(self) -> None:
    """Completes the task that is at work."""
    if self._group:
      self.found.append(Task(tuple(self._group)))
      self._group, self.held = [], 0

  def add(self, part: Part) -> None:
    """Adds what can be read by itself."""
    self._group.append(part)
    self.held += part.size
    if self.held >= self._size:
      self.close()

  def whole(self, path: str, size: int) -> None:
    """Adds what is read from its beginning."""
    self.close()
    self.found.append(Task((Part(path, 0, None, size),)))


def plan(paths: Sequence[str], field: str, size: int) -> list[Task]:
  """The tasks of a corpus, in order.

  Args:
    field: of JSON, Parquet and data sets, with the text.
    size: bytes of a piece, about.

  Raises:
    InputError: a file that cannot be read, or has no such column.
  """
  tasks = Tasks(size)
  for path in paths:
    form = kind(path)
    if form in ("hf", "tfds", ".tar") or _is_packed(path):
      is_data_set = form in ("hf", "tfds")
      names = foreign.streams(path) if is_data_set else [path]
      num = 0 if is_data_set else size_of(path)
      for name in names:
        tasks.whole(name, num)
    elif form == ".parquet":
      for i, num in enumerate(foreign.row_groups(path, field)):
        tasks.add(Part(path, i, i + 1, num))
    else:
      start, total = 0, size_of(path)
      if form == "text" and tasks.held + total > size:  # cut only if it must be
        tasks.close()
      while start < total:
        stop = min(start + size - tasks.held, total)
        tasks.add(Part(path, start, stop, stop - start))
        start = stop
  tasks.close()
  return tasks.found


def size_of(path: str) -> int:
  """Bytes of a file."""
  try:
    found = file(path).stat().st_size
  except OSError as error:
    raise InputError(f"cannot read {path}: {error.strerror}") from None
  if not found and _is_packed(path):
    raise InputError(f"{path} is cut off: it is empty; restore it from a copy")
  return found


def pieces(
  task: Task, field: str, size: int, wanted: Callable[[int], bool]
) -> Iterator[Piece]:
  """The wanted pieces of a task, in order; a whole is read to its end all the same."""
  if not task.is_whole:
    if wanted(0):
      yield Piece(0, (text for part in task.parts for text in _texts(part, field)), 0)
    return
  path = task.parts[0].path
  if kind(path) in ("hf", "tfds"):
    read = functools.partial(foreign.text_of, field)
    yield from grouped(foreign.records(path, read), size, wanted, lambda: 0)
    return
  with opened(path) as raw:
    yield from grouped(_records(raw, path, field), size, wanted, raw.tell)


def grouped(
  records: Iterable[foreign.Record],
  size: int,
  wanted: Callable[[int], bool],
  at_byte: Callable[[], int],
) -> Iterator[Piece]:
  """Pieces of what is read from its beginning: the records that begin in their bytes.

  Args:
    at_byte: how far it has been read.
  """
  read = 0  # bytes of records before this one

  def number(record: foreign.Record) -> int:
    nonlocal read
    read += record[0]
    return (read - record[0]) // size

  for at, group in itertools.groupby(records, number):
    if wanted(at):
      yield Piece(at, (parse() for _, parse in group), at_byte())


def _records(raw: BinaryIO, path: str, field: str) -> Iterator[foreign.Record]:
  """Records of a file that is read from its beginning."""
  with whole(path), decompressed(raw, path) as file:
    if kind(path) == ".tar":
      yield from foreign.members(file, path, field)
    elif kind(path) == "lines":
      at = 0
      for line in file:
        if line.strip():
          where = f"{path}, byte {at}"
          yield len(line), functools.partial(foreign.of_json, field, line, where)
        at += len(line)
    else:
      yield from _whole_text(file, path)


@contextlib.contextmanager
def whole(path: str) -> Iterator[None]:
  """Says which file is cut off or damaged, in one line."""
  try:
    yield
  except (EOFError, OSError, zlib.error, tarfile.TarError) as error:
    raise InputError(
      f"{path} is cut off or damaged ({first_line(error)}); restore it from a copy"
    ) from None


def _whole_text(file: io.BufferedIOBase, path: str) -> Iterator[foreign.Record]:
  """A text, in documents of at most `LARGEST` bytes that end with lines."""
  at = 0
  while content := file.read(LARGEST):
    content += file.readline() if len(content) == LARGEST else b""
    where = f"{path}, from byte {at}"
    at += len(content)
    yield len(content), functools.partial(files.decode, content, where)


def _texts(part: Part, field: str) -> Iterator[str]:
  """The documents of a part that can be read by itself."""
  form = kind(part.path)
  if form == ".parquet":
    yield from foreign.column(part.path, part.start, field)
    return
  with opened(part.path) as file:
    if part.start:
      file.seek(part.start - 1)
      file.readline()  # of the part before
    at = file.tell()
    if form == "lines":
      while at < part.stop and (line := file.readline()):
        if line.strip():
          yield foreign.of_json(field, line, f"{part.path}, byte {at}")
        at += len(line)
    elif at < part.stop:
      content = file.read(part.stop - at)
      content += b"" if content.endswith(b"\n") else file.readline()
      yield files.decode(content, f"{part.path}, from byte {at}")


def opened(path: str) -> BinaryIO:
  """A file that `listed` has named; InputError if it cannot be read."""
  try:
    return file(path).open("rb")
  except OSError as error:
    raise InputError(f"cannot read {path}: {error.strerror}") from None


def decompressed(raw: BinaryIO, path: str) -> io.BufferedIOBase:
  """The content of a file that may be .gz or .zst."""
  if path.lower().endswith(".gz"):
    return gzip.GzipFile(fileobj=raw)
  if path.lower().endswith((".zst", ".zstd")):
    return io.BufferedReader(foreign.Zstandard(raw, path), 2**20)
  return raw
