"""Files that users name: globs, UTF-8 text, JSON; each failure is one clear line."""

import glob
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gen_jax.types import InputError, unknown


def matching(pattern: str) -> list[pathlib.Path]:
  """The files that a path or glob names, by name; InputError if there are none."""
  paths = map(pathlib.Path, glob.glob(os.path.expanduser(pattern), recursive=True))
  files = sorted(path for path in paths if path.is_file())
  if not files:
    raise InputError(
      f"no file matches {pattern!r}; give a file, or a glob in quotes like 'folder/*'"
    )
  return files


def stamps(paths: Sequence[pathlib.Path]) -> str:
  """Names, sizes and times of files."""
  stats = [(str(path.resolve()), path.stat()) for path in paths]
  return repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])


def read(path: pathlib.Path) -> str:
  """The text of a UTF-8 file."""
  try:
    return path.read_bytes().decode()
  except UnicodeDecodeError as error:
    raise InputError(
      f"{path} is not UTF-8 text (byte {error.start}); convert it, e.g. with iconv"
    ) from None
  except OSError as error:
    raise InputError(f"cannot read {path}: {error.strerror}") from None


def records(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """(where, object) of each object in a JSON array, or on each line of a JSONL file."""
  content = read(path)
  if content.lstrip().startswith("["):
    items = [(f"{path}[{i}]", item) for i, item in enumerate(_json(content, str(path)))]
  else:
    lines = enumerate(content.split("\n"), 1)
    items = (
      (f"{path}:{i}", _json(line, f"{path}:{i}")) for i, line in lines if line.strip()
    )
  for where, item in items:
    if not isinstance(item, dict):
      raise InputError(f"{where} is not a JSON object with named fields")
    yield where, item


def _json(content: str, where: str) -> Any:
  try:
    return json.loads(content)
  except (json.JSONDecodeError, RecursionError) as error:
    raise InputError(f"{where} is not JSON: {error}") from None


def field(row: Mapping[str, Any], name: str, where: str) -> Any:
  """row[name]; InputError names the fields that there are."""
  if name not in row:
    raise unknown(f"field (of {where})", name, row)
  return row[name]


def text(value: Any, where: str) -> str:
  """A string that UTF-8 can write, from a string or UTF-8 bytes."""
  try:
    string = value.decode() if isinstance(value, bytes) else value
    string.encode()
  except UnicodeError as error:
    raise InputError(f"{where}: text is not valid Unicode ({error})") from None
  except AttributeError:
    shown = " ".join(repr(value).split())[:80]
    raise InputError(f"{where}: {shown} is not text") from None
  return str(string)


def text_fields(path: pathlib.Path, *names: str) -> Iterator[list[str]]:
  """The named text fields of each of `records`."""
  for where, row in records(path):
    yield [text(field(row, name, where), where) for name in names]
