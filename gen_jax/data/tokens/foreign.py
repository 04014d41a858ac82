"""Formats of documents whose libraries are imported only where they are read."""

import functools
import io
import itertools
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from gen_jax import errors
from gen_jax.data import tfds
from gen_jax.errors import InputError, first_line, unknown
from gen_jax.system import files

SCHEMES = ("hf:", "tfds:")

# (bytes of a record, what makes its text of it).
Record = tuple[int, Callable[[], str]]


class Zstandard(io.RawIOBase):
  """A .zst file, decompressed; an end before the frame's is an error, not an end."""

  def __init__(self, raw: BinaryIO, path: str):
    with errors.extra("corpora"):
      import zstandard
    self._file = raw
    self._made = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj
    self._error = zstandard.ZstdError
    self._frame, self._rest, self._ready = None, b"", memoryview(b"")

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    while not self._ready:
      chunk = self._rest or self._file.read(2**16)
      if not chunk:
        if self._frame is not None:
          raise EOFError("it ends inside a frame")
        return 0
      try:
        self._frame = self._frame or self._made()
        self._ready = memoryview(self._frame.decompress(chunk))
      except self._error as error:
        raise OSError(first_line(error)) from None
      self._rest = b""
      if self._frame.eof:
        self._rest, self._frame = self._frame.unused_data, None
    num = min(len(buffer), len(self._ready))
    buffer[:num], self._ready = self._ready[:num], self._ready[num:]
    return num


def _parquet(path: str) -> Any:
  with errors.extra("corpora"):
    from pyarrow import parquet  # imported here: it costs a second

  try:
    found = files.path(path, "--source")
    where = path if files.is_local(found) else found.open("rb")
    return parquet.ParquetFile(where, page_checksum_verification=True)
  except Exception as error:  # pyarrow raises many kinds
    raise InputError(f"{path} is not a Parquet table: {first_line(error)}") from None


def row_groups(path: str, field: str) -> list[int]:
  """Bytes of the column in each row group of a Parquet file.

  Raises:
    InputError: it has no such column.
  """
  with _parquet(path) as table:
    names = table.schema_arrow.names
    if field not in names:
      raise unknown(f"column (of {path})", field, names)
    groups = [table.metadata.row_group(i) for i in range(table.num_row_groups)]
    sizes = []
    for group in groups:
      columns = [group.column(i) for i in range(group.num_columns)]
      own = [c for c in columns if c.path_in_schema.split(".")[0] == field]
      sizes.append(sum(column.total_uncompressed_size for column in own))
  return sizes


def rows(
  path: str, group: int, columns: Sequence[str], num: int = 256
) -> Iterator[tuple[str, dict[str, Any]]]:
  """(where, values) of each row of a row group, read `num` rows at a time."""
  with _parquet(path) as table:
    row = 0
    try:
      for batch in table.iter_batches(num, row_groups=[group], columns=[*columns]):
        for values in batch.to_pylist():
          yield f"{path}, row group {group}, row {row}", values
          row += 1
    except (OSError, ValueError) as error:  # a damaged page
      raise InputError(f"{path} is damaged: {first_line(error)}") from None


def column(path: str, group: int, field: str) -> Iterator[str]:
  """The texts of a column in a row group, a few at a time."""
  for where, values in rows(path, group, [field]):
    yield files.text(values[field], where)


class _Header(tarfile.TarInfo):
  """Of a member of a tar. Where it is damaged or cut off `tarfile` sees the end."""

  @classmethod
  def fromtarfile(cls, tar):
    try:
      return super().fromtarfile(tar)
    except tarfile.EOFHeaderError:
      raise
    except tarfile.HeaderError as error:
      raise tarfile.ReadError(first_line(error)) from None


def archived(file) -> Iterator[tuple[str, Callable[[], bytes]]]:
  """(name, what reads it) of each file of a tar, but hidden ones, front to end.

  Raises:
    tarfile.TarError: it is damaged, cut off, or goes on after its end.
  """
  with tarfile.open(fileobj=file, mode="r|", tarinfo=_Header) as tar:
    for member in tar:
      if member.isfile() and not member.name.rpartition("/")[2].startswith("."):
        yield member.name, tar.extractfile(member).read
    while rest := tar.fileobj.read(2**20):
      if rest.strip(b"\0"):
        raise tarfile.ReadError("more follows the mark of its end")


def members(file, path: str, field: str) -> Iterator[Record]:
  """Files of a tar, read from front to end: *.FIELD, *.txt for text, *.json with it.

  Raises:
    InputError: it has none.
  """
  plain = {field, "txt"} if field == "text" else {field}
  is_empty = True
  for name, content in archived(file):
    ends = [s for s in (*plain, "json") if name.lower().endswith(f".{s.lower()}")]
    if not ends:
      continue
    content, is_empty = content(), False
    read = files.decode if ends[0] in plain else functools.partial(of_json, field)
    yield len(content), functools.partial(read, content, f"{path}: {name}")
  if is_empty:
    raise InputError(f"{path} has no files *.{' or *.'.join(sorted(plain))} or *.json")


def of_json(field: str, content: bytes, where: str) -> str:
  """The text in a field of a JSON object."""
  row = files.parse_json(content, where)
  if not isinstance(row, dict):
    raise InputError(f"{where} is not a JSON object with named fields")
  return files.text(files.field(row, field, where), where)


def named(source: str, subset: str | None, split: str) -> str:
  """A data set, its configuration and its split in one text."""
  return "|".join((source, subset or "", split))


def _words(name: str) -> tuple[str, str, str]:
  source, subset, split = name.rsplit("|", 2)
  return source.partition(":")[2], subset, split


def _hub(name: str) -> Any:
  """A data set of Hugging Face as a stream."""
  with errors.extra("corpora"):
    import datasets
  source, subset, split = _words(name)
  try:
    return datasets.load_dataset(source, subset or None, split=split, streaming=True)
  except Exception as error:  # of many kinds: names, networks, formats
    raise InputError(f"cannot open hf:{source}: {first_line(error)}") from None


def _tfds(name: str) -> Sequence[dict[str, Any]]:
  source, subset, split = _words(name)
  return tfds.split_of(f"{source}/{subset}".rstrip("/"), None, split)


def features(name: str) -> Mapping[str, Any]:
  """What a data set says of its fields; {} if nothing."""
  if name.startswith("hf:"):
    return _hub(name).features or {}
  source, subset, _ = _words(name)
  found = tfds.builder(f"{source}/{subset}".rstrip("/"), None).info.features
  return dict(found.items())


_EXAMPLES = 100_000  # of TFDS in a part


def streams(name: str) -> list[str]:
  """Names of the parts of a data set that are read independently: NAME#i."""
  is_hub = name.startswith("hf:")
  num = _hub(name).num_shards if is_hub else -(-len(_tfds(name)) // _EXAMPLES)
  return [f"{name}#{i}" for i in range(num)]


def records(
  part: str, read: Callable[[dict, str], Record], image: str | None = None
) -> Iterator[Record]:
  """Records of a part, see `streams`.

  Args:
    read: of (row, where it is).
    image: a field with images, which are not decoded if that can be.

  Raises:
    InputError: no such field, or an example that cannot be read.
  """
  name, _, number = part.rpartition("#")
  source, found = name.partition("|")[0], _rows(name, int(number), image)
  for i in itertools.count():
    where = f"{source}, part {number}, example {i}"
    try:
      row = next(found, None)
    except Exception as error:  # of many kinds
      raise InputError(f"cannot read {where}: {first_line(error)}") from None
    if row is None:
      return
    yield read(row, where)


def text_of(field: str, row: dict[str, Any], where: str) -> Record:
  """The text in a field of an example, as a record."""
  text = files.text(files.field(row, field, where), where)
  return len(text), lambda: text


def _rows(name: str, number: int, image: str | None) -> Iterator[dict[str, Any]]:
  if name.startswith("hf:"):
    dataset = _hub(name)
    if image in (dataset.features or ()):
      import datasets

      dataset = dataset.cast_column(image, datasets.Image(decode=False))
    yield from dataset.shard(num_shards=dataset.num_shards, index=number)
    return
  examples = _tfds(name)
  start = number * _EXAMPLES
  for i in range(start, min(start + _EXAMPLES, len(examples))):
    yield examples[i]
