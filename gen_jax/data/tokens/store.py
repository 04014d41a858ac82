"""A token store: shards of token ids and a manifest, or what other programs wrote.

    STORE/manifest.json           what it is made of, size and hash of every shard
    STORE/tokenizer/              the tokenizer of its ids
    STORE/train-00000-00000.bin   shards with their .idx, see `indexed`
    STORE/validation-00000-...    documents that are held out

Ids are uint16, or int32 if the vocabulary has more than 65,536. Besides these, files of
nanoGPT (ids uint16 alone; a .bin, or a folder with train.bin and val.bin) and the
indexed data sets of Megatron are read as they are.
"""

import bisect
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from gen_jax.data import cache, tokenizers
from gen_jax.data.tokens import indexed
from gen_jax.system import files
from gen_jax.types import InputError

MANIFEST = "manifest.json"
FORMAT = 1
TOKENIZER = "tokenizer"
ABOUT = "about.json"  # of a store that is not finished
SPLITS = ("train", "validation")


class Mapped(Protocol):
  """A shard in memory maps: `indexed.Mapped` or `Plain`."""

  ids: np.ndarray

  def starts(self, low: int, high: int) -> np.ndarray:
    """int64, the first tokens of documents that lie in [low, high)."""
    ...


class Plain(NamedTuple):
  """Ids alone, in which a token ends every document (nanoGPT)."""

  ids: np.ndarray
  eos: int | None

  def starts(self, low: int, high: int) -> np.ndarray:
    """int64, the tokens in [low, high) that follow an end."""
    if self.eos is None:
      return np.zeros(0, np.int64)
    before = max(low - 1, 0)
    after_end = np.flatnonzero(self.ids[before : high - 1] == self.eos) + before + 1
    return after_end[after_end >= low]


class Shard(NamedTuple):
  """A number of tokens, and what maps them when they are read."""

  num_tokens: int
  mapped: Callable[[], Mapped]


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
  """The tokens of shards as one long array that is never in memory.

  Attributes:
    start, stop: the part of all shards' tokens that this is.
  """

  shards: tuple[Shard, ...]
  start: int
  stop: int

  @classmethod
  def of(cls, shards: Iterable[Shard]) -> "Stream":
    """All tokens of the shards, in order."""
    shards = tuple(shards)
    return cls(shards, 0, sum(shard.num_tokens for shard in shards))

  @functools.cached_property
  def _ends(self) -> list[int]:
    return list(itertools.accumulate(shard.num_tokens for shard in self.shards))

  def __len__(self) -> int:
    return self.stop - self.start

  def part(self, start: int, stop: int) -> "Stream":
    """Tokens start to stop of this stream."""
    return dataclasses.replace(self, start=self.start + start, stop=self.start + stop)

  def _mapped(self, low: int, high: int) -> Iterator[tuple[int, int, int, Mapped]]:
    """(offset of a shard, its tokens low to high, itself) that hold these tokens."""
    number = bisect.bisect_right(self._ends, low)
    while low < high:
      shard, end = self.shards[number], self._ends[number]
      first, stop = end - shard.num_tokens, min(high, end)
      yield first, low - first, stop - first, shard.mapped()
      low, number = stop, number + 1

  def window(self, start: int, stop: int) -> cache.Tokens:
    """Tokens start to stop, cut off at the stream's end.

    Returns:
      `starts` count from `start`. The first is 0: the window's part of a document that
      begins before it is one.
    """
    low, high = self.start + start, min(self.start + stop, self.stop)
    ids, starts = [], [np.zeros(1, np.int64)]
    for first, begin, end, mapped in self._mapped(low, high):
      ids.append(mapped.ids[begin:end])
      starts.append(mapped.starts(begin, end) + (first - low))
    ids = ids[0] if len(ids) == 1 else np.concatenate(ids)
    starts = np.concatenate(starts)
    return cache.Tokens(ids, starts[np.searchsorted(starts, 0, side="right") - 1 :])

  def documents(self) -> np.ndarray:
    """int64, the first token of each document; 8 bytes of memory for each."""
    found = [
      mapped.starts(begin, end) + (first - self.start)
      for first, begin, end, mapped in self._mapped(self.start, self.stop)
    ]
    starts = np.concatenate(found)
    return starts if len(starts) and starts[0] == 0 else np.insert(starts, 0, 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Texts(Sequence):
  """The documents of streams, decoded when they are asked for.

  Attributes:
    open: the streams and their tokenizers; called when a document is asked for.
  """

  open: Callable[[], Sequence[tuple[Stream, tokenizers.Tokenizer]]]

  @functools.cached_property
  def _parts(self) -> list[tuple[Stream, tokenizers.Tokenizer, np.ndarray]]:
    """Streams, tokenizers, and the first token of each document, and the end."""
    return [(s, t, np.append(s.documents(), len(s))) for s, t in self.open()]

  def __len__(self) -> int:
    return sum(len(bounds) - 1 for _, _, bounds in self._parts)

  def __getitem__(self, i: int) -> str:
    for stream, tokenizer, bounds in self._parts:
      if 0 <= i < len(bounds) - 1:
        window = stream.window(*bounds[i : i + 2].tolist())
        return tokenizer.decode(window.ids.tolist())
      i -= len(bounds) - 1
    raise IndexError(i)


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
  """Streams by split, and the tokenizer they were made with, if they tell."""

  path: pathlib.Path
  streams: Mapping[str, Stream]
  fingerprint: str | None = None

  def check_tokenizer(self, tokenizer: tokenizers.Tokenizer) -> None:
    """Raises InputError for another tokenizer than the store's, where it is known."""
    if self.fingerprint not in (None, tokenizer.fingerprint):
      raise InputError(
        f"the token store {self.path} was made with another tokenizer; set"
        f" data.tokenizer.name=file and data.tokenizer.path={self.path / TOKENIZER}"
      )

  def stream(self, split: str, fraction: float) -> Stream:
    """A split; the tail, `fraction` of all tokens, is validation where none is."""
    stream = self.streams.get("train", Stream.of(()))
    if "validation" in self.streams:
      return self.streams[split] if split == "validation" else stream
    cut = len(stream) - round(len(stream) * fraction)
    return stream.part(*((0, cut) if split == "train" else (cut, len(stream))))


def open_store(path: pathlib.Path, eos: int | None) -> Store:
  """Opens a store, or files of nanoGPT or Megatron; reads no tokens.

  Args:
    eos: the token that ends documents, where the format does not say where they begin.

  Raises:
    InputError: nothing of these is there, or a file of it is cut off or damaged.
  """
  if (path / MANIFEST).exists():
    return _own(path)
  if (path / ABOUT).exists():
    raise InputError(
      f"the token store {path} is not finished; give its gen-jax tokenize again"
    )
  stem = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
  if indexed.exists(stem):
    return Store(path, {"train": Stream.of([_indexed(stem)])})
  names = {"train": path / "train.bin", "validation": path / "val.bin"}
  if path.suffix == ".bin" and path.is_file():
    names = {"train": path}
  found = {split: name for split, name in names.items() if name.exists()}
  if "train" not in found:
    raise InputError(
      f"{path} holds no tokens: give a folder of gen-jax tokenize, a .bin of nanoGPT or"
      " a folder with its train.bin, or a .bin of Megatron with its .idx"
    )
  return Store(path, {s: Stream.of([_plain(name, eos)]) for s, name in found.items()})


def _indexed(prefix: pathlib.Path) -> Shard:
  mapped = indexed.open_shard(prefix)
  return Shard(len(mapped.ids), functools.partial(indexed.open_shard, prefix))


def _plain(path: pathlib.Path, eos: int | None) -> Shard:
  mapped = Plain(indexed.map_file(path, np.dtype("<u2")), eos)
  return Shard(len(mapped.ids), lambda: mapped)


def _own(path: pathlib.Path) -> Store:
  manifest = read_manifest(path)
  dtype, streams = manifest["dtype"], {}
  for split, shards in manifest["splits"].items():
    found = []
    for shard in shards:
      prefix = path / shard["name"]
      indexed.check_size(prefix, shard["tokens"], shard["documents"], dtype)
      opened = functools.partial(_checked, prefix, dtype)
      found.append(Shard(shard["tokens"], opened))
    if found:
      streams[split] = Stream.of(found)
  return Store(path, streams, manifest["tokenizer"])


def _checked(prefix: pathlib.Path, dtype: str) -> indexed.Mapped:
  mapped = indexed.open_shard(prefix)
  if mapped.ids.dtype != dtype:
    raise InputError(
      f"the shard {prefix} holds {mapped.ids.dtype}, its manifest says {dtype}; restore"
      " it from a copy, or tokenise the corpus again"
    )
  return mapped


_FIELDS = {"format": int, "dtype": str, "tokenizer": str, "splits": dict}


def read_manifest(path: pathlib.Path) -> dict[str, Any]:
  """The manifest of a store.

  Raises:
    InputError: damaged, or of another version.
  """
  where = path / MANIFEST
  manifest = files.read_sealed(where)
  for name, kind in _FIELDS.items():
    if not isinstance(files.field(manifest, name, str(where)), kind):
      raise InputError(f"{where} is damaged: {name} is no {kind.__name__}")
  if manifest["format"] != FORMAT or manifest["dtype"] not in ("uint16", "int32"):
    raise InputError(
      f"{where} is of format {manifest['format']} with dtype {manifest['dtype']!r:.20};"
      f" format {FORMAT} with uint16 or int32 is needed"
    )
  return manifest
