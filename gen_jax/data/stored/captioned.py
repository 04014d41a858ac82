"""Images with captions, in pieces that several processes read independently.

A source is a folder of images (see `data.folders`), tar files in the manner of
WebDataset, Parquet tables with a column of encoded images, a data set of Hugging Face
("hf:NAME") or of TFDS ("tfds:NAME"). Tasks and pieces are those of `tokens.documents`.
"""

import functools
import io
import itertools
import operator
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gen_jax.data import folders, image_files
from gen_jax.data.tokens import documents, foreign
from gen_jax.errors import InputError
from gen_jax.system import files

_CLASSES = 2**20  # at most
_TABLES = ("*.tar", "*.tar.gz", "*.tar.zst", "*.parquet")


class Fields(NamedTuple):
  """Where examples have what: fields of tables, of data sets, and of *.json in tars.

  Attributes:
    caption: text; or a class number, whose name is the caption.
    label: a class number; None: the image has none.
  """

  image: str = "image"
  caption: str = "text"
  label: str | None = None


class Captioned(NamedTuple):
  """An encoded image.

  Attributes:
    caption: None: the name of its class.
    split: where the source says so.
  """

  content: bytes
  caption: str | None
  label: int | str | None
  split: str | None
  where: str


def listed(source: str, subset: str | None, split: str) -> list[str]:
  """What a user named: a folder of images, files, or a data set.

  Raises:
    InputError: nothing of these.
  """
  if source.startswith(foreign.SCHEMES):
    return [foreign.named(source, subset, split)]
  path = files.path(source, "--source")
  if not path.is_dir():
    found = documents.listed(source, subset, split)
  else:
    found = [str(p) for pattern in _TABLES for p in path.rglob(pattern)]
    found = [p for p in found if pathlib.PurePath(p).name not in folders.TABLES]
    if not found:
      return [str(files.local(source, "--source"))]
  if others := [p for p in found if documents.kind(p) not in (".tar", ".parquet")]:
    raise InputError(
      f"--source {source!r}: {others[0]} is neither a .tar nor a .parquet; give these,"
      " a folder of images, hf:NAME or tfds:NAME"
    )
  return sorted(found)


def _kind(path: str) -> str:
  """'.parquet', '.tar', 'hf', 'tfds' or 'folder'."""
  found = documents.kind(path)
  return "folder" if found in ("text", "lines") else found


class _Folder(NamedTuple):
  """Images of a folder: path, caption, class or None, split or None."""

  items: list[tuple[pathlib.Path, str, str | None, str | None]]
  sizes: list[int]


@functools.lru_cache(maxsize=8)
def _folder(path: str, caption: str) -> _Folder:
  root = pathlib.Path(path)
  splits = folders.split(root, folders.images_in(path, "--source"))
  named = "validation" in splits.by_split
  items = []
  for split in ("train", "validation"):
    paths = splits.by_split.get(split, [])
    if not paths:
      continue
    texts = folders.captions(root, paths, splits.tops, caption, "--caption")
    for image in paths:
      label = None if image.parent in splits.tops else image.parent.name
      about = label, split if named else None
      items += [(image, text, *about) for text in texts[image]]
  return _Folder(items, [image.stat().st_size for image, *_ in items])


def stamps(paths: Sequence[str], fields: Fields) -> tuple[str, list[list[Any]]]:
  """What changes with the files of a source, and the names and sizes of its parts."""
  told, sizes = [], []
  for path in paths:
    if _kind(path) in ("hf", "tfds"):
      told.append(path)
      sizes.append([path, None])
    elif _kind(path) == "folder":
      found = _folder(path, fields.caption)
      told.append(files.stamps([image for image, *_ in found.items]))
      sizes.append([pathlib.Path(path).resolve().name, sum(found.sizes)])
    else:
      told.append(files.stamps([documents.file(path)]))
      sizes.append([documents.file(path).name, documents.size_of(path)])
  return files.value_sha256(told), sizes


def class_names(paths: Sequence[str], fields: Fields) -> list[str] | None:
  """Names of the classes, where the source has them; None: numbers are all there is.

  Raises:
    InputError: parts of a source have different classes.
  """
  found = []
  for path in paths:
    if _kind(path) == "folder":
      items = _folder(path, fields.caption).items
      found.append(sorted({label for _, _, label, _ in items if label is not None}))
    elif _kind(path) in ("hf", "tfds"):
      features = foreign.features(path)
      named = (features.get(name) for name in (fields.label, fields.caption) if name)
      names = (getattr(feature, "names", None) for feature in named)
      found.append(list(next(filter(None, names), ())))
  found = [names for names in found if names]
  if any(names != found[0] for names in found):
    raise InputError(
      f"the sources have different classes: {found[0]!s:.80} and others; pack them one"
      " by one"
    )
  return found[0] if found else None


def plan(paths: Sequence[str], fields: Fields, size: int) -> list[documents.Task]:
  """The tasks of a source, in order.

  Raises:
    InputError: what cannot be read, or lacks a column.
  """
  tasks = documents.Tasks(size)
  for path in paths:
    kind = _kind(path)
    if kind == "folder":
      for i, num in enumerate(_folder(path, fields.caption).sizes):
        tasks.add(documents.Part(path, i, i + 1, num))
    elif kind == ".parquet":
      for name in _columns(fields):  # refuses a table without one
        foreign.row_groups(path, name)
      for i, num in enumerate(foreign.row_groups(path, fields.image)):
        tasks.add(documents.Part(path, i, i + 1, num))
    elif kind == ".tar":
      tasks.whole(path, documents.size_of(path))
    else:
      for name in foreign.streams(path):
        tasks.whole(name, 0)
  tasks.close()
  return tasks.found


def _columns(fields: Fields) -> list[str]:
  return [*dict.fromkeys(filter(None, fields))]


def pieces(
  task: documents.Task, fields: Fields, size: int, wanted: Callable[[int], bool]
) -> Iterator[documents.Piece]:
  """The wanted pieces of a task, whose items are `Captioned`."""
  if not task.is_whole:
    if wanted(0):
      items = (item for part in task.parts for item in _items(part, fields))
      yield documents.Piece(0, items, 0)
    return
  path = task.parts[0].path
  if _kind(path) == ".tar":
    with documents.opened(path) as raw:
      records = _samples(raw, path, fields)
      yield from documents.grouped(records, size, wanted, raw.tell)
    return
  read = functools.partial(_record, fields)
  records = foreign.records(path, read, fields.image)
  yield from documents.grouped(records, size, wanted, lambda: 0)


def _items(part: documents.Part, fields: Fields) -> Iterator[Captioned]:
  if _kind(part.path) == "folder":
    for i in range(part.start, part.stop):
      image, caption, label, split = _folder(part.path, fields.caption).items[i]
      yield Captioned(files.read_bytes(image), caption, label, split, str(image))
    return
  rows = foreign.rows(part.path, part.start, _columns(fields), 16)
  for where, row in rows:
    yield _of_row(fields, row, where)


def _encoded(value: Any, where: str) -> bytes:
  """The bytes of an image file: as they are, or of pixels as PNG."""
  if isinstance(value, dict):  # of Hugging Face
    content, path = value.get("bytes"), value.get("path")
    value = (
      files.read_bytes(pathlib.Path(path)) if content is None and path else content
    )
  if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3:
    if value.shape[-1] not in (1, 3, 4) or not value.size:
      raise InputError(f"{where}: pixels of shape {value.shape} are no image (H, W, 3)")
    png = io.BytesIO()
    grey = value.shape[-1] == 1
    Image.fromarray(value[..., 0] if grey else value).save(png, "PNG", compress_level=1)
    value = png.getvalue()
  if not isinstance(value, bytes):
    raise InputError(
      f"{where}: {type(value).__name__} is no image; bytes of an image file are needed"
    )
  return value


def _label(value: Any, where: str) -> int:
  try:
    number = int(value)
  except (TypeError, ValueError, OverflowError):
    number = -1
  is_whole = isinstance(value, str | bytes) or number == value
  if not (is_whole and 0 <= number < _CLASSES):
    wanted = f"whole numbers from 0 to {_CLASSES - 1} are"
    raise InputError(f"{where}: {value!r:.40} is no class; {wanted}")
  return number


def _of_row(fields: Fields, row: dict[str, Any], where: str) -> Captioned:
  """An example of named fields."""
  content = _encoded(files.field(row, fields.image, where), where)
  label = caption = None
  if fields.label is not None:
    label = _label(files.field(row, fields.label, where), where)
  if fields.caption in row or label is None:
    caption = files.field(row, fields.caption, where)
  if isinstance(caption, int | np.integer):
    label, caption = _label(caption, where), None
  if caption is not None or label is None:
    caption = files.text(caption, where)
  return Captioned(content, caption, label, None, where)


def _record(fields: Fields, row: dict[str, Any], where: str) -> foreign.Record:
  found = _of_row(fields, row, where)
  return len(found.content), lambda: found


def _samples(raw, path: str, fields: Fields) -> Iterator[foreign.Record]:
  """Samples of a tar: files that follow each other with a name up to its first dot.

  Raises:
    InputError: it has no images, or two of one name.
  """
  is_empty = True
  with documents.whole(path), documents.decompressed(raw, path) as file:
    named = _files_of(file, fields)
    for stem, group in itertools.groupby(named, operator.itemgetter(0)):
      found: dict[str, bytes] = {}
      for _, suffix, content in group:
        if f".{suffix}" in image_files.FOREIGN:
          raise InputError(f"{path}: {stem}.{suffix} is of an unsupported format")
        if _image_of(found) and f".{suffix}" in image_files.SUFFIXES:
          raise InputError(f"{path}: {stem}.{suffix} is a second image of its sample")
        found[suffix] = content
      if _image_of(found):
        is_empty = False
        yield _sample(found, f"{path}: {stem}", fields)
      elif dotted := [s for s in found if s.endswith(image_files.SUFFIXES)]:
        raise InputError(
          f"{path}: {stem}.{dotted[0]} is no image of a sample: its name ends at its"
          f" first dot, and nothing like {stem}.png follows; rename it"
        )
  if is_empty:
    raise InputError(f"{path} holds no images ({', '.join(image_files.SUFFIXES)})")


def _files_of(file, fields: Fields) -> Iterator[tuple[str, str, bytes]]:
  """(sample, the rest of its name, content) of each file that is read."""
  others = ("json", "cls", "txt", fields.caption, fields.label)
  for path, content in foreign.archived(file):
    home, slash, name = path.rpartition("/")
    stem, dot, suffix = name.partition(".")
    suffix = suffix.lower()
    endings = image_files.SUFFIXES + image_files.FOREIGN
    if suffix in others or f"{dot}{suffix}".endswith(endings):
      yield f"{home}{slash}{stem}", suffix, content()


def _image_of(found: dict[str, bytes]) -> str | None:
  return next((s for s in found if f".{s}" in image_files.SUFFIXES), None)


def _sample(found: dict[str, bytes], where: str, fields: Fields) -> foreign.Record:
  suffix = _image_of(found)

  def parse() -> Captioned:
    row = files.parse_json(found.get("json", b"{}"), f"{where}.json")
    if not isinstance(row, dict):
      raise InputError(f"{where}.json is not a JSON object with named fields")
    plain = {"text": "txt"}.get(fields.caption, fields.caption)
    if plain in found:
      row[fields.caption] = files.decode(found[plain], f"{where}.{plain}").strip()
    own, label = fields, fields.label or "cls"
    if label in found or "cls" in found:
      row[label] = found.get(label, found.get("cls")).strip()
      own = fields._replace(label=label)
    return _of_row(own, {**row, fields.image: found[suffix]}, f"{where}.{suffix}")

  return len(found[suffix]), parse
