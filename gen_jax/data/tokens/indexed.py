"""Megatron's indexed data sets: NAME.bin, token ids, and NAME.idx, their documents.

    NAME.bin   ids of all documents, one after the other, nothing between
    NAME.idx   "MMIDIDX\\0\\0", version 1 (u64), code of the dtype (u8), number of
               sequences n (u64) and of entries m (u64); int32 [n], lengths in tokens;
               int64 [n], first bytes in NAME.bin; int64 [m], the first sequence of each
               document and at last n

Plain arrays, so that both are mapped, not read; of a bucket, the parts that are asked
for are read by range requests. The shards of a token store are such
pairs, where every sequence is a document; Megatron-LM reads them as they are.

Source: Megatron-LM, megatron/core/datasets/indexed_dataset.py.
"""

import bisect
import functools
import hashlib
import pathlib
import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from gen_jax.data import cache
from gen_jax.errors import InputError
from gen_jax.system import blocks, copies, files

_HEAD = struct.Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\0\0"
_CODES = {1: "uint8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}


class Written(NamedTuple):
  """What a shard holds; sha256 is of NAME.bin and then NAME.idx."""

  tokens: int
  documents: int
  sha256: str


def write(prefix: pathlib.Path, chunks: Iterable[cache.Tokens]) -> Written:
  """Writes a shard in constant memory, but for 4 bytes a document; the .idx last.

  Args:
    prefix: path of the pair without its suffixes.
    chunks: ids of one dtype; `starts` count from the chunk's own first token.
  """
  digest, dtype, num = hashlib.sha256(), np.dtype(np.uint16), 0
  starts = [np.zeros(0, np.int64)]
  with copies.replacing(_bin(prefix)) as partial, partial.open("wb") as file:
    for chunk in chunks:
      dtype = chunk.ids.dtype
      content = chunk.ids.astype(dtype.newbyteorder("<")).tobytes()
      file.write(content)
      digest.update(content)
      starts.append(chunk.starts + num)
      num += len(chunk.ids)
  index = _index(np.concatenate(starts), num, dtype)
  files.write_bytes(_idx(prefix), index)
  digest.update(index)
  return Written(num, sum(map(len, starts)), digest.hexdigest())


def sha256(prefix: pathlib.Path) -> str:
  """The hash of a shard, as of `Written`."""
  digest = hashlib.sha256()
  for path in (_bin(prefix), _idx(prefix)):
    with path.open("rb") as file:
      while content := file.read(2**22):
        digest.update(content)
  return digest.hexdigest()


def _index(starts: np.ndarray, num: int, dtype: np.dtype) -> bytes:
  code = next(code for code, name in _CODES.items() if name == dtype.name)
  head = _HEAD.pack(_MAGIC, 1, code, len(starts), len(starts) + 1)
  lengths = np.diff(starts, append=num)
  arrays = (
    *(lengths.astype("<i4"), (starts * dtype.itemsize).astype("<i8")),
    np.arange(len(starts) + 1, dtype="<i8"),
  )
  return b"".join([head, *(array.tobytes() for array in arrays)])


def _bin(prefix: pathlib.Path) -> pathlib.Path:
  return prefix.with_name(f"{prefix.name}.bin")


def _idx(prefix: pathlib.Path) -> pathlib.Path:
  return prefix.with_name(f"{prefix.name}.idx")


# What is read where it is touched: a memory map, or a file of a bucket.
Lazy = np.ndarray | blocks.Array


class Mapped(NamedTuple):
  """A shard that is read where it is touched.

  Attributes:
    ids: [N].
    pointers: int64, the first byte of each document, rising.
  """

  ids: Lazy
  pointers: Lazy

  def starts(self, low: int, high: int) -> np.ndarray:
    """int64, the first tokens of documents that lie in [low, high)."""
    size = self.ids.dtype.itemsize
    # Two bisections of a map; `np.searchsorted` would copy it, for it is not aligned.
    pair = (bisect.bisect_left(self.pointers, edge * size) for edge in (low, high))
    return np.asarray(self.pointers[slice(*pair)], np.int64) // size


@functools.lru_cache(maxsize=1024)  # a process may hold some 65,000 maps
def open_shard(prefix: pathlib.Path) -> Mapped:
  """Maps a shard; touches its head and its last entry alone.

  Raises:
    InputError: a file is missing, cut off, or not of this format.
  """
  index = map_file(_idx(prefix), np.dtype(np.uint8))
  if len(index) < _HEAD.size or index[:9].tobytes() != _MAGIC:
    raise InputError(f"{_idx(prefix)} is not the index of an indexed data set")
  _, version, code, num, entries = _HEAD.unpack(index[: _HEAD.size].tobytes())
  if version != 1 or code not in _CODES:
    raise InputError(
      f"{_idx(prefix)} is of version {version} with dtype {code}; whole numbers in"
      " version 1 are needed"
    )
  sizes = (4 * num, 8 * num, 8 * entries)
  _, at, last, end = np.cumsum([_HEAD.size, *sizes]).tolist()
  if len(index) < end:
    raise _cut_off(_idx(prefix), len(index), end)
  pointers = _part(index, at, last, "<i8")
  ids = map_file(_bin(prefix), np.dtype(_CODES[code]).newbyteorder("<"))
  size = ids.dtype.itemsize
  if num:
    length = int(_part(index, _HEAD.size, at, "<i4")[num - 1])
    if len(ids) * size < (want := int(pointers[num - 1]) + length * size):
      raise _cut_off(_bin(prefix), len(ids) * size, want)
  if entries != num + 1:  # documents of several sequences
    firsts = _part(index, last, end, "<i8")[:][:-1]
    if len(firsts) and not 0 <= firsts.min() <= firsts.max() < num:
      raise InputError(f"{_idx(prefix)} is damaged: documents begin outside of it")
    pointers = pointers[:][firsts]
  return Mapped(ids, pointers)


def known(prefix: pathlib.Path, tokens: int, documents: int, dtype: str) -> Mapped:
  """A shard of a bucket as its manifest describes it; reads nothing."""
  pointers = blocks.Array(
    _idx(prefix), np.dtype("<i8"), _HEAD.size + 4 * documents, documents
  )
  ids = blocks.Array(_bin(prefix), np.dtype(dtype).newbyteorder("<"), 0, tokens)
  return Mapped(ids, pointers)


def _part(array: Lazy, start: int, stop: int, dtype: str) -> Lazy:
  """Bytes start to stop as another dtype."""
  if isinstance(array, blocks.Array):
    return array.part(start, stop, np.dtype(dtype))
  return array[start:stop].view(dtype)


def map_file(path: pathlib.Path, dtype: np.dtype) -> Lazy:
  """A file as an array that is read where it is touched.

  Raises:
    InputError: it is not there, or not whole.
  """
  try:
    size = path.stat().st_size
    if size % dtype.itemsize:
      raise _cut_off(path, size, size + dtype.itemsize - size % dtype.itemsize)
    if not files.is_local(path):
      return blocks.Array(path, dtype, 0, size // dtype.itemsize)
    mapped = np.memmap(path, dtype, "r") if size else np.zeros(0, dtype)
    return np.asarray(mapped)  # slices of a `np.memmap` are slow
  except OSError as error:
    raise InputError(f"cannot read {path}: {error.strerror}") from None


def _cut_off(path: pathlib.Path, size: int, want: int) -> InputError:
  return InputError(
    f"{path} is cut off: it has {size:,} bytes of {want:,}; restore it from a copy, or"
    " make the store again"
  )


def exists(prefix: pathlib.Path) -> bool:
  """Whether there is such a pair."""
  return _bin(prefix).exists() and _idx(prefix).exists()


def check_size(
  prefix: pathlib.Path,
  tokens: int,
  documents: int,
  dtype: str,
  sizes: Mapping[str, int],
) -> None:
  """Raises InputError unless both files have the size of that much; reads nothing.

  Args:
    sizes: of the files of the folder, see `files.sizes`.
  """
  bytes_of_ids = tokens * np.dtype(dtype).itemsize
  wanted = {_bin(prefix): bytes_of_ids, _idx(prefix): _HEAD.size + 20 * documents + 8}
  for path, want in wanted.items():
    size = sizes.get(path.name)
    if size is None:
      raise InputError(f"cannot read {path}: No such file; restore it from a copy")
    if size != want:
      raise _cut_off(path, size, want)
