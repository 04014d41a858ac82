"""Buckets: addresses `gs://...` and `s3://...` with the methods of `pathlib.Path`.

What differs from a folder of a disk:

- A file is written whole or not at all, by one request. There is no appending.
- A folder is the common beginning of some names: it is there as long as a file is in
  it, and nobody makes or removes it.
- `replace` of a file is atomic for readers. That of a folder copies file by file.
- A store that does not answer is waited for: see `stores`.

Credentials and endpoints are those of the stores' own tools: AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL and ~/.aws, or Google's application-default credentials and
STORAGE_EMULATOR_HOST.
"""

import errno
import fnmatch
import functools
import glob
import types
from collections.abc import Iterator
from typing import Any, NoReturn

import fsspec
from etils import epath

from gen_jax.errors import InputError
from gen_jax.system import stores


class Address(type(epath.Path("/"))):
  """A file or folder of a bucket."""

  @property
  def scheme(self) -> str:
    """'gs' or 's3'."""
    return str(self).partition(":")[0]

  @property
  def bucket(self) -> str:
    """The name of the bucket."""
    return self.parts[2]

  @property
  def key(self) -> str:
    """The name within the bucket, '' for all of it."""
    return "/".join(self.parts[3:])

  @property
  def parents(self) -> tuple["Address", ...]:
    """Up to the bucket."""
    return tuple(super().parents)[:-2]

  @property
  def store(self) -> fsspec.AbstractFileSystem:
    """What serves the scheme."""
    stores.serve(self.scheme)
    return fsspec.filesystem(self.scheme)

  def _about(self) -> dict[str, Any] | None:
    try:
      return self.store.info(str(self))
    except FileNotFoundError:
      return None

  def exists(self) -> bool:
    return self._about() is not None

  def is_dir(self) -> bool:
    return (self._about() or {}).get("type") == "directory"

  def is_file(self) -> bool:
    return (self._about() or {}).get("type") == "file"

  def is_symlink(self) -> bool:
    return False

  def stat(self) -> types.SimpleNamespace:
    """st_size in bytes and st_mtime_ns, of the last write; and what orbax asks for."""
    about = self._about()
    if about is None:
      self._missing()
    when = about.get("LastModified") or about.get("mtime")
    seconds = when.timestamp() if hasattr(when, "timestamp") else 0.0
    return types.SimpleNamespace(
      st_size=about["size"],
      st_mtime_ns=int(seconds * 1e9),
      mtime=seconds,
      length=about["size"],
      is_directory=about["type"] == "directory",
    )

  def _missing(self) -> NoReturn:
    raise FileNotFoundError(errno.ENOENT, "no such file in the bucket", str(self))

  def absolute(self) -> "Address":
    return self

  resolve = expanduser = absolute

  def iterdir(self) -> Iterator["Address"]:
    try:
      found = self.store.ls(str(self), detail=False)
    except FileNotFoundError:
      self._missing()
    names = sorted({name.rstrip("/").rpartition("/")[2] for name in found})
    own = f"{self.bucket}/{self.key}".rstrip("/")
    return (self / n for n in names if [own] != [f.rstrip("/") for f in found])

  def files(self) -> list["Address"]:
    """All files in and below a folder."""
    cut = len(f"{self.bucket}/{self.key}".rstrip("/")) + 1
    found = self.store.find(str(self))
    return [self / name[cut:] for name in found if name[cut:]]

  def sizes(self) -> dict[str, int]:
    """{name: bytes} of the files in a folder, by one listing; {} without any."""
    try:
      found = self.store.ls(str(self), detail=True)
    except FileNotFoundError:
      return {}
    of_files = (about for about in found if about["type"] == "file")
    return {about["name"].rpartition("/")[2]: about["size"] for about in of_files}

  def glob(self, pattern: str) -> Iterator["Address"]:
    """Of this folder, whose own brackets and stars are none of the pattern's."""
    first, _, rest = pattern.partition("/")
    if first == "**":
      yield from self.rglob(rest or "*")
    elif not glob.has_magic(first):
      child = self / first
      if rest:
        yield from child.glob(rest)
      elif child.exists():
        yield child
    elif self.is_dir():
      for child in self.iterdir():
        if fnmatch.fnmatchcase(child.name, first):
          yield from child.glob(rest) if rest else [child]

  def rglob(self, pattern: str) -> Iterator["Address"]:
    """The files below, never folders, whose names match."""
    return (p for p in self.files() if fnmatch.fnmatchcase(p.name, pattern))

  def mkdir(self, mode=None, parents: bool = False, exist_ok: bool = False) -> None:
    """Nothing is made; FileExistsError if there is something already."""
    if not exist_ok and self.exists():
      raise FileExistsError(errno.EEXIST, "exists already", str(self))

  def rmdir(self) -> None:
    """Raises OSError for a folder with something in it; an empty one is none."""
    if self.exists():
      raise OSError(errno.ENOTEMPTY, "is not empty", str(self))

  def rmtree(self, missing_ok: bool = False) -> None:
    """Deletes the file, or all below."""
    found = [self] if self.is_file() else self.files()
    for file in found:  # one by one: `rm` reads brackets and stars as a pattern
      self.store.rm_file(str(file))
    if not (found or missing_ok):
      self._missing()

  def unlink(self, missing_ok: bool = False) -> None:
    if self.is_file():
      self.store.rm_file(str(self))
    elif not missing_ok:
      self._missing()

  def touch(self, mode=None, exist_ok: bool = True) -> None:
    if not self.exists():
      self.write_bytes(b"")

  def open(self, mode: str = "r", encoding=None, errors=None, newline=None) -> Any:
    """A file; what is written to it is there when it is closed."""
    if "r" in mode and not self.is_file():
      self._missing()
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": newline}
    return self.store.open(str(self), mode, **text)

  def read_bytes(self) -> bytes:
    try:
      return self.store.cat_file(str(self))
    except FileNotFoundError:
      self._missing()

  def read_range(self, start: int, stop: int) -> bytes:
    """Bytes start to stop, fewer at its end; by one request."""
    try:
      return self.store.cat_file(str(self), start=start, end=stop)
    except FileNotFoundError:
      self._missing()

  def read_text(self, encoding=None, errors=None) -> str:
    return self.read_bytes().decode("utf-8")

  def write_bytes(self, data: bytes) -> int:
    self.store.pipe_file(str(self), bytes(data))
    return len(data)

  def write_text(self, data: str, encoding=None, errors=None, newline=None) -> int:
    return self.write_bytes(data.encode("utf-8"))

  def create(self, data: bytes) -> None:
    """Writes a file that is not there yet: of several processes one succeeds.

    Raises:
      FileExistsError: it is there, by another's hand.
    """
    try:
      self.store.pipe_file(str(self), data, mode="create")
    except OSError as error:
      is_there = isinstance(error, FileExistsError) or stores.code(error) in (
        *("PreconditionFailed", "ConditionalRequestConflict"),
      )
      if not is_there:
        raise
      if self.exists() and self.read_bytes() == data:
        return  # the answer to this very request was lost on the way
      raise FileExistsError(errno.EEXIST, "exists already", str(self)) from None

  def replace(self, target: epath.PathLike) -> "Address":
    """Renames a file or folder of the same bucket; what was there is replaced."""
    target = Address(target)
    for file in [self] if self.is_file() else self.files():
      name = file.relative_to(self).as_posix()
      self.store.cp_file(str(file), str(target if name == "." else target / name))
    self.rmtree()
    return target

  rename = replace

  def kvstore(self) -> dict[str, Any]:
    """The folder as tensorstore's drivers name it."""
    path = f"{self.key}/" if self.key else ""
    return {**stores.driver(self.scheme), "bucket": self.bucket, "path": path}


@functools.cache
def _reach(root: Address) -> None:
  (root / ".gen-jax").exists()


def address(text: str, name: str) -> Address:
  """The address that a user wrote, in a bucket that answers.

  Args:
    name: of the flag or config key, for the message.

  Raises:
    InputError: a scheme that is not served here, or whose package is not installed; no
      credentials, or a bucket that does not exist or denies them.
  """
  scheme, slashes, rest = text.partition("://")
  if not slashes:
    raise InputError(f"{name} {text!r} has one slash; an address has two, s3://bucket")
  if scheme not in stores.SCHEMES:
    raise InputError(
      f"{name} {text!r} is an address of no store that is served; give a local path, or"
      f" {' or '.join(f'{known}://bucket/folder' for known in stores.SCHEMES)}"
    )
  if not rest.strip("/") or "\0" in text or "//" in rest or ".." in rest.split("/"):
    raise InputError(f"{name} {text!r} is no address; give {scheme}://bucket/folder")
  found = Address(text)
  stores.serve(scheme)
  _reach(found.parents[-1] if found.key else found)
  return found
