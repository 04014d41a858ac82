"""Files and folders copied and removed, on disks and in buckets."""

import functools
import hashlib
import os
import pathlib
import shutil
import tempfile

from gen_jax.system import files
from gen_jax.types import InputError


def remove(path: pathlib.Path) -> None:
  """Deletes a file, or a folder with all that is in it; it may be gone already."""
  if not files.is_local(path):
    path.rmtree(missing_ok=True)
  elif path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def is_whole(folder: pathlib.Path) -> bool:
  """Whether a folder with hashes is there: in a bucket they come last, see `copy`."""
  return folder.exists() if files.is_local(folder) else (folder / files.HASHES).exists()


def copy(source: pathlib.Path, target: pathlib.Path, but: tuple[str, ...] = ()) -> None:
  """Copies a file, or what is in a folder into another; the folder's hashes last.

  Args:
    but: names in the folder that are left out.
  """
  if source.is_file():
    _copy_file(source, target)
    return
  target.mkdir(parents=True, exist_ok=True)
  marked = [files.HASHES] if (source / files.HASHES).is_file() else []
  for name in [*files.names(source), *marked]:
    if name not in but:
      (target / name).parent.mkdir(parents=True, exist_ok=True)
      _copy_file(source / name, target / name)


def rename(source: pathlib.Path, target: pathlib.Path) -> None:
  """Renames a file or folder; that of a bucket has its hashes last, see `copy`."""
  if files.is_local(source):
    source.replace(target)
  else:
    copy(source, target)
    remove(source)


def _copy_file(source: pathlib.Path, target: pathlib.Path) -> None:
  if files.is_local(source) and files.is_local(target):
    shutil.copyfile(source, target)
  elif files.is_local(source):
    target.store.put_file(str(source), str(target))
  elif files.is_local(target):
    source.store.get_file(str(source), str(target))
  else:
    target.write_bytes(source.read_bytes())


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
  return tempfile.TemporaryDirectory(prefix="gen-jax-")  # until the process ends


def scratch(name: str) -> pathlib.Path:
  """A folder on this disk that goes when the process ends."""
  folder = pathlib.Path(_scratch().name) / name
  folder.mkdir(parents=True, exist_ok=True)
  return folder


@functools.cache
def fetched(path: pathlib.Path) -> pathlib.Path:
  """The path itself; of a file or folder of a bucket a copy, made once a process."""
  if files.is_local(path):
    return path
  digest = hashlib.sha256(str(path).encode()).hexdigest()[:16]
  here = scratch(digest) / path.name
  copy(path, here)
  return here


def here(text: str | os.PathLike, name: str) -> pathlib.Path:
  """Where a file or folder that a user named is on this disk; see `fetched`.

  Raises:
    InputError: see `files.path`; the bucket has no such thing.
  """
  path = files.path(text, name)
  if not (files.is_local(path) or path.exists()):
    raise InputError(f"{name} {os.fspath(text)!r}: there is no such file or folder")
  return fetched(path)
