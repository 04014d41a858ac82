"""Files that one process makes, of several that try: what leases rest on."""

import os
import pathlib
from typing import Protocol

from gen_jax.system import files


class Own(Protocol):
  """A file made by this process, which may write it again."""

  def write(self, content: bytes) -> None:
    """Writes content of the same length; a file that took its place stays as it is."""

  def again(self, content: bytes) -> None:
    """Makes it again, after it was deleted; FileExistsError if another one is there."""

  def close(self) -> None:
    """Ends the writing; the file stays."""


class _File:
  """Of a disk, by its descriptor: what replaces it is another file."""

  def __init__(self, path: pathlib.Path, content: bytes, at: pathlib.Path):
    self._path, self._number = at, _open(path, 0o644)
    self.write(content)

  def write(self, content: bytes) -> None:
    os.pwrite(self._number, content, 0)
    os.fsync(self._number)  # other hosts see it

  def again(self, content: bytes) -> None:
    new = _File(self._path, content, self._path)
    os.dup2(new._number, self._number)
    new.close()

  def close(self) -> None:
    os.close(self._number)


class _Object:
  """Of a bucket: what is written later goes to `aside`, which has one writer."""

  def __init__(self, path: pathlib.Path, aside: pathlib.Path):
    self._path, self._aside = path, aside

  def write(self, content: bytes) -> None:
    self._aside.write_bytes(content)

  def again(self, content: bytes) -> None:
    self._path.create(content)

  def close(self) -> None:
    self._aside.unlink(missing_ok=True)


def _open(path: pathlib.Path, mode: int) -> int:
  return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)


def make(path: pathlib.Path, content: bytes, aside: pathlib.Path) -> Own:
  """Makes a file that is not there yet.

  Args:
    aside: a path of this process alone; a bucket keeps later content there.

  Raises:
    FileExistsError: it is there.
  """
  if files.is_local(path):
    return _File(path, content, path)
  path.create(content)
  return _Object(path, aside)


def take(path: pathlib.Path, content: bytes, aside: pathlib.Path) -> Own:
  """`make` in place of a file that is there, at once for whoever reads it."""
  if files.is_local(path):
    own = _File(aside, content, path)
    os.replace(aside, path)
    return own
  path.write_bytes(content)
  return _Object(path, aside)


def write_private(path: pathlib.Path, content: str) -> None:
  """Writes a new file that only its owner may read; in a bucket, whoever may read it.

  Raises:
    OSError: FileExistsError, or it cannot be written.
  """
  if not files.is_local(path):
    path.create(content.encode())
    return
  with os.fdopen(_open(path, 0o600), "w") as file:
    file.write(content)
