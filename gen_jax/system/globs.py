"""Globs: the files that match a pattern, on a disk or in a bucket."""

import glob
import os
import pathlib
from collections.abc import Iterator, Sequence

from gen_jax.errors import InputError
from gen_jax.system import files


def _below(folder: str, parts: Sequence[str]) -> Iterator[str]:
  """Paths in a folder that match the parts of a pattern."""
  if not parts:
    yield folder
    return
  first, *rest = parts
  found = [os.path.join(folder, first)]
  if not os.path.lexists(found[0]):
    pattern = os.path.join(glob.escape(folder), first, *([""] if rest else []))
    found = glob.glob(pattern, recursive=True)
  for name in found:
    yield from _below(name, rest)


def _in_bucket(folder: pathlib.Path, parts: Sequence[str]) -> Iterator[pathlib.Path]:
  """`_below`, of a bucket."""
  if not parts or parts[0] == "**":
    yield from folder.glob("/".join(parts)) if parts else [folder]
    return
  child = folder / parts[0]
  for found in [child] if child.exists() else folder.glob(parts[0]):
    yield from _in_bucket(found, parts[1:])


def matching(pattern: str) -> list[pathlib.Path]:
  """The files that match a path or glob, sorted by name; by two names: the first.

  An existing file or folder of exactly a pattern's name is not a glob: with a folder
  "data [2023]", "data [2023]/*.txt" matches its files.

  Raises:
    InputError: there are none.
  """
  expanded = files.path(pattern, "the pattern")
  if not files.is_local(expanded):
    paths = set(_in_bucket(expanded.parents[-1], expanded.parts[3:]))
  else:
    paths = {pathlib.Path(name) for name in _below("", expanded.parts)}
  found = sorted({p.resolve(): p for p in sorted(paths)[::-1] if p.is_file()}.values())
  if not found:
    raise InputError(
      f"no file matches {pattern!r}; give a file, or a glob in quotes like 'folder/*'"
    )
  return found
