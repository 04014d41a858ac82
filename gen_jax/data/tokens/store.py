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
import concurrent.futures
import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from gen_jax.data import cache, tokenizers
from gen_jax.data.tokens import indexed
from gen_jax.errors import InputError, unknown
from gen_jax.system import files

MANIFEST = "manifest.json"
FORMAT = 1
TOKENIZER = "tokenizer"
ABOUT = "about.json"  # of a store that is not finished
SPLITS = ("train", "validation")


class Mapped(Protocol):
  """A shard that is read where it is touched: `indexed.Mapped` or `Plain`."""

  ids: indexed.Lazy

  def starts(self, low: int, high: int) -> np.ndarray:
    """int64, the first tokens of documents that lie in [low, high)."""


class Plain(NamedTuple):
  """Ids alone, in which a token ends every document (nanoGPT)."""

  ids: indexed.Lazy
  eos: int | None

  def starts(self, low: int, high: int) -> np.ndarray:
    """int64, the tokens in [low, high) that follow an end."""
    if self.eos is None:
      return np.zeros(0, np.int64)
    before = max(low - 1, 0)
    after_end = np.flatnonzero(self.ids[before : high - 1] == self.eos) + before + 1
    return after_end[after_end >= low]


class Shard(NamedTuple):
  """A number of tokens, what maps them when they are read, and where they lie."""

  num_tokens: int
  mapped: Callable[[], Mapped]
  is_remote: bool


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

  @property
  def is_remote(self) -> bool:
    """Whether shards are read from a bucket."""
    return any(shard.is_remote for shard in self.shards)

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
  check_finished(path)
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


def check_finished(path: pathlib.Path) -> None:
  """Raises InputError for a store that is still being made."""
  if (path / ABOUT).exists():
    raise InputError(
      f"the store {path} is not finished; give the command that makes it again"
    )


def _indexed(prefix: pathlib.Path) -> Shard:
  mapped = indexed.open_shard(prefix)
  opened = functools.partial(indexed.open_shard, prefix)
  return Shard(len(mapped.ids), opened, not files.is_local(prefix))


def _plain(path: pathlib.Path, eos: int | None) -> Shard:
  mapped = Plain(indexed.map_file(path, np.dtype("<u2")), eos)
  return Shard(len(mapped.ids), lambda: mapped, not files.is_local(path))


def _own(path: pathlib.Path) -> Store:
  manifest = read_manifest(path)
  found = shards(path, manifest)
  streams = {split: Stream.of(found[split]) for split in found if found[split]}
  return Store(path, streams, manifest["tokenizer"])


def shards(path: pathlib.Path, manifest: Mapping[str, Any]) -> dict[str, list[Shard]]:
  """{split: shards} of a manifest, whose files have the sizes that it says.

  Raises:
    InputError: a file is missing, or cut off.
  """
  dtype, sizes = manifest["dtype"], files.sizes(path)
  found: dict[str, list[Shard]] = {}
  for split, told in manifest["splits"].items():
    found[split] = []
    for shard in told:
      given = path / shard["name"], shard["tokens"], shard["documents"], dtype
      indexed.check_size(*given, sizes)
      opened = functools.partial(_checked, *given)
      found[split].append(Shard(shard["tokens"], opened, not files.is_local(path)))
  return found


def check_hashes(
  path: pathlib.Path, manifest: Mapping[str, Any], watched: Callable[..., Iterable]
) -> int:
  """The number of shards, whose hashes are all those of the manifest.

  Args:
    watched: passes results on, given how many there will be.

  Raises:
    InputError: shards are missing, cut off or changed; the first is named.
  """
  shards(path, manifest)
  told = [shard for found in manifest["splits"].values() for shard in found]
  with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    digests = pool.map(lambda shard: indexed.sha256(path / shard["name"]), told)
    pairs = zip(told, watched(digests, len(told)), strict=True)
    changed = [shard["name"] for shard, digest in pairs if digest != shard["sha256"]]
  if changed:
    raise InputError(
      f"{len(changed)} of {len(told)} shards of {path} are not as they were written,"
      f" the first is {changed[0]} (.bin or .idx): restore them from a copy, or make"
      " the store again"
    )
  return len(told)


def _checked(
  prefix: pathlib.Path, tokens: int, documents: int, dtype: str
) -> indexed.Mapped:
  if not files.is_local(prefix):
    return indexed.known(prefix, tokens, documents, dtype)
  mapped = indexed.open_shard(prefix)
  if mapped.ids.dtype != dtype:
    raise InputError(
      f"the shard {prefix} holds {mapped.ids.dtype}, its manifest says {dtype}; restore"
      " it from a copy, or tokenise the corpus again"
    )
  if (len(mapped.ids), len(mapped.pointers)) != (tokens, documents):
    raise InputError(f"the index of the shard {prefix} is damaged; restore it")
  return mapped


_SHARD = {"name": str, "tokens": int, "documents": int, "sha256": str}
_FIELDS = {"format": int, "dtype": str, "splits": dict}
# Kinds of stores: more fields of their manifests, their dtypes, and what reads them.
_KINDS = {
  "tokens": ({"tokenizer": str}, ("uint16", "int32"), "data.source=tokens"),
  "images": ({}, ("uint8",), "data.source=image_store"),
}


def read_manifest(path: pathlib.Path, kind: str | None = "tokens") -> dict[str, Any]:
  """The manifest of a store.

  Args:
    kind: None: of any.

  Raises:
    InputError: damaged, of another version, or of another kind.
  """
  where = path / MANIFEST
  manifest = files.read_sealed(where)
  found = str(manifest.get("kind", "tokens"))
  if found not in _KINDS:
    raise unknown(f"kind of store (of {where})", found, _KINDS)
  fields, dtypes, reader = _KINDS[found]
  if kind not in (None, found):
    needed = f"and {kind} are needed; read it by {reader}"
    raise InputError(f"{path} is a store of {found}, {needed}")
  is_whole = files.fits(manifest, {**_FIELDS, **fields}) and all(
    isinstance(shards, list) and all(files.fits(shard, _SHARD) for shard in shards)
    for shards in manifest["splits"].values()
  )
  if not is_whole:
    raise InputError(f"{where} is damaged: it lacks parts; restore it from a copy")
  if manifest["format"] != FORMAT or manifest["dtype"] not in dtypes:
    raise InputError(
      f"{where} is of format {manifest['format']} with dtype {manifest['dtype']!r:.20};"
      f" format {FORMAT} with {' or '.join(dtypes)} is needed"
    )
  return manifest
