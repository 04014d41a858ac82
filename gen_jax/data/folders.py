"""Folders of images: their files, captions and splits.

The layouts are those of Hugging Face's ImageFolder. Captions are in metadata.jsonl,
metadata.csv or metadata.parquet, at the top or in any folder below; `file_name` is
relative to its table, and an image may have several rows. Folders train/ and
validation/ (or valid, val, dev) at the top are the splits; test/ is not read. A table
in an unknown format is an error: folder names never replace its captions.
"""

import collections
import csv
import io
import os
import pathlib
import re
from collections.abc import Container, Iterator, Sequence
from typing import Any, NamedTuple

from gen_jax import errors
from gen_jax.data import image_files
from gen_jax.errors import InputError, first_line
from gen_jax.system import copies, files

TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SHEETS = ("grid.png", "before_after.png", "nearest.png")  # written by commands
_SHEETS = "|".join(map(re.escape, SHEETS))
_SPLITS = {
  **dict.fromkeys(("train", "training"), "train"),
  **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
  **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_TABULAR = (".jsonl", ".csv", ".tsv", ".parquet", ".xlsx", ".caption")
_MEANT = re.compile(r"(metadata|caption|label|annotation)", re.IGNORECASE)


def _walk(root: pathlib.Path) -> Iterator[pathlib.Path]:
  """Files below a folder, links followed; without hidden and unfinished ones."""
  seen = set()
  for home, folders, names in os.walk(root, followlinks=True):
    if (real := os.path.realpath(home)) in seen:
      folders.clear()
      continue
    seen.add(real)
    folders[:] = sorted(filter(_is_own, folders))
    yield from (pathlib.Path(home, name) for name in sorted(filter(_is_own, names)))


def _is_own(name: str) -> bool:
  return name[0] != "." and name != "__MACOSX" and not name.endswith(".partial")


def _sheets(home: pathlib.Path) -> re.Pattern | None:
  """Names of sheets that commands and training write into a folder."""
  is_run = all((home.parent / name).exists() for name in ("config.json", "run.json"))
  if is_run and home.name == "figures":
    return re.compile(".*")
  if is_run and home.name in ("samples", "edits"):
    return re.compile(f"{_SHEETS}|.+_[0-9]{{8}}[.]png")
  return re.compile(_SHEETS) if (home / "prompts.json").exists() else None


def images_in(directory: str, name: str) -> list[pathlib.Path]:
  """The images in and below a folder, sorted, without sheets that commands write.

  Args:
    name: of the flag or config key that gives `directory`.

  Raises:
    InputError: it is not set, not a folder, without images, or has images of an
      unsupported format.
  """
  root = copies.here(directory, name)
  if not root.is_dir():
    raise InputError(f"{name} {directory!r} is not a folder")
  found = list(_walk(root))
  foreign = [path for path in found if path.suffix.lower() in image_files.FOREIGN]
  if foreign:
    known = ", ".join(image_files.SUFFIXES)
    raise InputError(
      f"{name} {directory!r} has {len(foreign)} images of an unsupported format, the"
      f" first is {foreign[0]}; convert them ({known}) or remove them"
    )
  suffixes = image_files.SUFFIXES
  paths = [path for path in found if path.suffix.lower() in suffixes]
  sheets = {home: _sheets(home) for home in {path.parent for path in paths}}
  paths = [
    path
    for path in paths
    if not (sheets[path.parent] and sheets[path.parent].fullmatch(path.name))
  ]
  if not paths:
    raise InputError(f"{name} {directory!r} holds no images ({', '.join(suffixes)})")
  return sorted(paths)


class Splits(NamedTuple):
  """Images of a folder by split.

  Attributes:
    tops: folders whose names are not captions.
    by_split: 'train', and 'validation' and 'test' if there are such folders.
  """

  tops: set[pathlib.Path]
  by_split: dict[str, list[pathlib.Path]]


def split(root: pathlib.Path, paths: Sequence[pathlib.Path]) -> Splits:
  """Images by split, if all are in folders named like splits; else all are 'train'.

  Raises:
    InputError: only some folders are named like splits.
  """
  folders: dict[str, list[pathlib.Path]] = {}
  for path in paths:
    first, *below = path.relative_to(root).parts
    folders.setdefault(first if below else "", []).append(path)
  named = {name: _SPLITS[name.lower()] for name in folders if name.lower() in _SPLITS}
  if "train" in named.values() and len(named) == len(folders):
    found: dict[str, list[pathlib.Path]] = {}
    for name, kind in named.items():
      found.setdefault(kind, []).extend(folders[name])
    return Splits({root, *(root / name for name in named)}, found)
  if len(named) > 1:
    listed = ", ".join(sorted(name or "images without a folder" for name in folders))
    raise InputError(
      f"{root} has folders of splits ({', '.join(sorted(named))}) among others:"
      f" {listed}; keep only train, validation and test, or give one folder"
    )
  return Splits({root}, {"train": list(paths)})


def captions(
  root: pathlib.Path,
  paths: Sequence[pathlib.Path],
  tops: Container[pathlib.Path],
  field: str,
  flag: str = "data.source.caption_field",
) -> dict[pathlib.Path, list[str]]:
  """{image: captions} of images below a folder.

  Captions come from the tables; without tables from .txt files of the same name;
  without these from the name of the image's folder.

  Args:
    tops: folders whose names are not captions, see `split`.
    field: of the tables, with the captions.
    flag: or config key that gives `field`, for messages.

  Raises:
    InputError: a caption is missing, a row names no image, or captions are in an
      unknown format.
  """
  others = [
    path for path in _walk(root) if path.suffix.lower() not in image_files.SUFFIXES
  ]
  tables = [path for path in others if path.name in TABLES]
  if not tables:
    return _without_tables(root, paths, tops, others)
  ((home, num),) = collections.Counter(path.parent for path in tables).most_common(1)
  if num > 1:
    raise InputError(f"{home} has more than one of {', '.join(TABLES)}; keep one")
  found, home = {}, os.path.join(os.path.abspath(root), "")
  names = {}  # in rows without an image
  for table in tables:
    for where, name, caption in _rows(table, field, flag):
      path = os.path.abspath(table.parent / name)
      if path not in found:
        is_image = path.startswith(home) and path.lower().endswith(image_files.SUFFIXES)
        if not (is_image and os.path.isfile(path)):
          names.setdefault(where, name)
      found.setdefault(path, []).append(caption)
  missing = [path for path in paths if os.path.abspath(path) not in found]
  if missing:
    raise _missing(missing, paths, root, " or ".join(sorted({t.name for t in tables})))
  for where, name in names.items():
    raise InputError(
      f"{where} names {name!r}, not an image in {root} ({len(names)} such rows); add"
      " the image or remove the row"
    )
  return {path: found[os.path.abspath(path)] for path in paths}


def _missing(missing, paths, root, home: str) -> InputError:
  return InputError(
    f"{len(missing)} of {len(paths)} images in {root} have no caption in {home}, the"
    f" first is {missing[0]}; write the missing captions"
  )


def _without_tables(
  root: pathlib.Path,
  paths: Sequence[pathlib.Path],
  tops: Container[pathlib.Path],
  others: Sequence[pathlib.Path],
) -> dict[pathlib.Path, list[str]]:
  missing = [p for p in paths if not p.with_suffix(".txt").exists()]
  if not missing:
    return {path: [files.read(path.with_suffix(".txt")).strip()] for path in paths}
  if len(missing) < len(paths):
    raise _missing(missing, paths, root, ".txt")
  own = {path.with_suffix("") for path in paths}
  for path in others:
    suffix = path.suffix.lower()
    is_json = suffix == ".json" and path.name != "prompts.json"
    is_meant = _MEANT.match(path.name) or path.with_suffix("") in own
    if (
      suffix in _TABULAR
      or (_MEANT.match(path.name) and suffix)
      or (is_json and is_meant)
    ):
      raise InputError(
        f"{path} is not read, but may hold captions; write them to one of"
        f" {', '.join(TABLES)} (columns file_name and text), or remove it to use folder"
        " names as captions"
      )
  found = {}
  for path in paths:
    home = root if path.parent in tops else path.parent
    found[path] = [files.text(os.path.basename(os.path.abspath(home)), str(path))]
  return found


def _rows(table: pathlib.Path, field: str, flag: str) -> Iterator[tuple[str, str, str]]:
  """(where, file_name, caption) of each row of a table."""
  read = {".jsonl": files.records, ".csv": _csv, ".parquet": _parquet}[table.suffix]
  for where, row in read(table):
    name = files.text(files.field(row, "file_name", where), where)
    try:
      caption = files.field(row, field, where)
    except InputError as error:
      raise InputError(f"{error}; {flag} names the field of captions") from None
    yield where, name, files.text(caption, where)


def _csv(path: pathlib.Path) -> Iterator[tuple[str, dict[str, str]]]:
  reader = csv.reader(io.StringIO(files.read(path), newline=""), strict=True)
  try:
    header = next(reader, [])
    if len(set(header)) < len(header):
      raise InputError(f"{path} has two columns of the same name; rename one")
    for row in filter(None, reader):
      where = f"{path}:{reader.line_num}"
      if len(row) != len(header):
        raise InputError(
          f"{where} has {len(row)} fields, the header has {len(header)}; quote text"
          " that contains commas"
        )
      yield where, dict(zip(header, row, strict=True))
  except csv.Error as error:
    raise InputError(f"{path}:{reader.line_num} is not CSV: {error}") from None


def _parquet(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  with errors.extra("data"):
    from pyarrow import parquet  # imported here: it costs a second

  try:
    rows = parquet.read_table(path).to_pylist()
  except Exception as error:  # pyarrow raises many kinds
    raise InputError(f"{path} is not a Parquet table: {first_line(error)}") from None
  yield from ((f"{path}, row {i}", row) for i, row in enumerate(rows))
