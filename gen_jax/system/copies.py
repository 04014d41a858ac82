"""Files and folders copied and removed, on disks and in buckets."""

import contextlib
import functools
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence

from gen_jax.errors import InputError
from gen_jax.system import files


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


def copy(
  source: pathlib.Path,
  target: pathlib.Path,
  but: Sequence[str] = (),
  last: str = files.HASHES,
) -> None:
  """Copies a file, or what is in a folder into another.

  Args:
    but: names in the folder that are left out.
    last: the file of the folder that says it is whole.
  """
  if source.is_file():
    _copy_file(source, target)
    return
  target.mkdir(parents=True, exist_ok=True)
  marked = [last] if (source / last).is_file() else []
  for name in [*(n for n in files.names(source) if n != last), *marked]:
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
  elif source.scheme == target.scheme:
    target.store.cp_file(str(source), str(target))  # by the store itself
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


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """`files.replacing`; of a bucket, the file is written here and sent when it is whole.

  A file that is written there itself is complete wherever its writer fails.
  """
  if files.is_local(path):
    with files.replacing(path) as partial:
      yield partial
    return
  here = pathlib.Path(tempfile.mkdtemp(dir=scratch("sent"))) / path.name
  try:
    yield here
    copy(here, path)
  finally:
    shutil.rmtree(here.parent)


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
