"""Records in shards: an image or its codes with a caption, perhaps a label.

A shard is a pair of `tokens.indexed` whose ids are bytes and whose documents are
records: the CRC-32 of the rest (u32), and {name: value} in msgpack. A record is found
by its number through the .idx, on a disk by memory map, in a bucket by two requests.
"""

import bisect
import itertools
import pathlib
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np

from gen_jax.data import cache
from gen_jax.data.tokens import store
from gen_jax.errors import InputError, one_line

DTYPE = "uint8"
REQUESTS = 64  # records that are read at once, of a bucket
_CRC = struct.Struct("<I")


def _packed(record: dict[str, Any]) -> bytes:
  """The bytes that flax makes; it comes with jax, which a packer of images need not."""
  try:
    return msgpack.packb(dict(sorted(record.items())), strict_types=True)
  except TypeError:  # arrays
    from flax import serialization

    return serialization.msgpack_serialize(record)


def chunks(records: Iterable[Mapping[str, Any]]) -> Iterator[cache.Tokens]:
  """Records as the documents of a shard, see `indexed.write`."""
  for record in records:
    content = _packed(dict(record))
    content = _CRC.pack(zlib.crc32(content)) + content
    yield cache.Tokens(np.frombuffer(content, DTYPE), np.zeros(1, np.int64))


def _unpacked(content: bytes, where: str) -> dict[str, Any]:
  """The values of a record; InputError if it is not as it was written."""
  try:
    (crc,), rest = _CRC.unpack(content[: _CRC.size]), content[_CRC.size :]
    if zlib.crc32(rest) != crc:
      raise ValueError("it does not have its CRC-32")
    from flax import serialization

    return serialization.msgpack_restore(rest)
  except Exception as error:  # msgpack raises many kinds
    raise InputError(
      f"{where} is damaged ({one_line(error):.200}); restore the shard from a copy, or"
      " make the store again"
    ) from None


class Records(Sequence):
  """The records of a split of a store, read when they are asked for.

  Raises:
    InputError: a shard is missing or cut off; when a record is read: it is damaged.
  """

  def __init__(self, path: pathlib.Path, manifest: Mapping[str, Any], split: str):
    """Args:
    manifest: with dtype and splits.
    """
    told = manifest["splits"].get(split, [])
    self._shards = store.shards(path, manifest).get(split, [])
    self._names = [str(path / shard["name"]) for shard in told]
    self._sizes = [shard["documents"] for shard in told]
    self._ends = list(itertools.accumulate(self._sizes))

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __getitem__(self, i: int) -> dict[str, Any]:
    if not 0 <= i < len(self):
      raise IndexError(i)
    number = bisect.bisect_right(self._ends, i)
    shard, size = self._shards[number], self._sizes[number]
    at = int(i) - (self._ends[number] - size)
    mapped = shard.mapped()
    edges = np.asarray(mapped.pointers[at : at + 2]).tolist()
    first, last = (*edges, shard.num_tokens)[:2]
    where = f"{self._names[number]}.bin, record {at}"
    return _unpacked(mapped.ids[first:last].tobytes(), where)
