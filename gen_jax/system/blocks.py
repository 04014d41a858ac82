"""Files of buckets read in parts, by range requests.

What is read is rounded to blocks of `SIZE` bytes, and the blocks that were asked for
last are kept in memory, at most `KEPT` bytes of a process.
"""

import collections
import dataclasses
import itertools
import pathlib
import threading

import numpy as np

from gen_jax.errors import InputError

SIZE = 2**14
KEPT = 2**28

Key = tuple[str, int]  # a file, and the number of a block in it

_kept: collections.OrderedDict[Key, bytes] = collections.OrderedDict()
_asked: dict[Key, threading.Event] = {}  # what a thread waits for
_lock = threading.Lock()


def _claim(keys: list[Key]) -> tuple[dict[Key, bytes], list[Key]]:
  """The blocks that are kept, and those that this thread has to ask for."""
  with _lock:
    found = {key: _kept[key] for key in keys if key in _kept}
    for key in found:
      _kept.move_to_end(key)
    mine = [key for key in keys if key not in found and key not in _asked]
    _asked.update((key, threading.Event()) for key in mine)
  return found, mine


def _fetch(path: pathlib.Path, keys: list[Key]) -> dict[Key, bytes]:
  """Blocks of a file; those that follow each other are one request."""
  new = {}
  try:
    for _, group in itertools.groupby(
      enumerate(keys), lambda pair: pair[1][1] - pair[0]
    ):
      run = [key for _, key in group]
      content = path.read_range(run[0][1] * SIZE, (run[-1][1] + 1) * SIZE)
      new |= {key: content[i * SIZE : (i + 1) * SIZE] for i, key in enumerate(run)}
  finally:
    with _lock:
      _kept.update(new)
      while len(_kept) * SIZE > KEPT:
        _kept.popitem(last=False)
      for key in keys:
        _asked.pop(key).set()
  return new


def read(path: pathlib.Path, start: int, stop: int) -> bytes:
  """Bytes start to stop of a file of a bucket; may be called by many threads.

  Raises:
    InputError: it ends before.
  """
  if start >= stop:
    return b""
  first = start // SIZE
  keys = [(str(path), number) for number in range(first, -(-stop // SIZE))]
  blocks: dict[Key, bytes] = {}
  while missing := [key for key in keys if key not in blocks]:
    found, mine = _claim(missing)
    blocks |= found
    if mine:
      blocks |= _fetch(path, mine)
    elif not found:  # others have asked
      with _lock:
        asked = [_asked[key] for key in missing if key in _asked]
      for event in asked:
        event.wait()
  content = b"".join(blocks[key] for key in keys)[start - first * SIZE :]
  if len(content) < stop - start:
    raise InputError(
      f"{path} is cut off at byte {start + len(content):,}, and {stop:,} are needed;"
      " restore it from a copy"
    )
  return content[: stop - start]


def forget() -> None:
  """Keeps no block."""
  with _lock:
    _kept.clear()


@dataclasses.dataclass(frozen=True)
class Array:
  """A part of a file of a bucket, like an array [num] that is read where it is asked.

  Attributes:
    first: byte in the file.
  """

  path: pathlib.Path
  dtype: np.dtype
  first: int
  num: int

  def __len__(self) -> int:
    return self.num

  def __getitem__(self, at: int | slice) -> np.ndarray | np.generic:
    if not isinstance(at, slice):
      return self[at : at + 1][0]
    low, high, _ = at.indices(self.num)
    edges = (self.first + edge * self.dtype.itemsize for edge in (low, max(low, high)))
    return np.frombuffer(read(self.path, *edges), self.dtype)

  def part(self, start: int, stop: int, dtype: np.dtype) -> "Array":
    """Elements start to stop, read as another dtype."""
    size = self.dtype.itemsize
    num = (stop - start) * size // dtype.itemsize
    return Array(self.path, dtype, self.first + start * size, num)
