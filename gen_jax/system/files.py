"""Files: paths, UTF-8 text, JSON, hashes and atomic writes.

A path is a `pathlib.Path`, or the `buckets.Address` of something in a bucket, which has
the same methods: signatures name the first for both.
All text and JSON is read through this file, so that byte-order marks, damaged files and
deep nesting are handled alike. Errors are `InputError`s of one line.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gen_jax.errors import InputError, unknown

SEAL = "file_sha256"
HASHES = "hashes.json"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")


def path(text: str | os.PathLike, name: str) -> pathlib.Path:
  """A path as written by a user, with `~` expanded; or the address of a bucket.

  Args:
    name: of the flag or config key, for the message.

  Raises:
    InputError: an empty path, or one with a NUL; see `buckets.address`.

  >>> path("~/runs", "--workdir") == pathlib.Path.home() / "runs"
  True
  """
  text = os.fspath(text)
  if _SCHEME.match(text):
    from gen_jax.system import buckets  # for those alone who have one

    return buckets.address(text, name)
  if not text.strip():  # an empty path would be the current folder
    raise InputError(f"{name} is not set; give a file or folder")
  if "\0" in text:
    raise InputError(f"{name} {text!r} is not a path; give a file or folder")
  return pathlib.Path(os.path.expanduser(text))


def cache_folder(name: str) -> pathlib.Path:
  """A folder of files that may be deleted at any time.

  It is in GEN_JAX_CACHE, else gen_jax in XDG_CACHE_HOME, else ~/.cache/gen_jax.
  """
  if own := os.environ.get("GEN_JAX_CACHE"):
    return local(own, "GEN_JAX_CACHE") / name
  shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return local(shared, "XDG_CACHE_HOME") / "gen_jax" / name


def is_local(path: pathlib.Path) -> bool:
  """Whether a path is of this machine, and not the address of a bucket."""
  return isinstance(path, pathlib.Path)


def local(text: str | os.PathLike, name: str) -> pathlib.Path:
  """`path`, of what only a disk can hold; InputError for an address."""
  if _SCHEME.match(os.fspath(text)):
    raise InputError(
      f"{name} {os.fspath(text)!r} is an address, and only a local path can be used"
      " here; copy the files, or mount the bucket (gcsfuse, mount-s3)"
    )
  return path(text, name)


def stamps(paths: Sequence[pathlib.Path]) -> str:
  """Names, sizes and modification times of files, as text."""
  stats = [(str(path.resolve()), path.stat()) for path in paths]
  return repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])


def sha256(path: pathlib.Path) -> str:
  """SHA-256 of a file's bytes, in hexadecimal."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def sizes(folder: pathlib.Path) -> dict[str, int]:
  """{name: bytes} of the files in a folder; {} if there is none."""
  if not is_local(folder):
    return folder.sizes()
  try:
    with os.scandir(folder) as found:
      return {entry.name: entry.stat().st_size for entry in found if entry.is_file()}
  except FileNotFoundError:
    return {}


def names(folder: pathlib.Path) -> list[str]:
  """All files in and below a folder, relative to it, without its own `HASHES`."""
  if is_local(folder):
    found = (path for path in folder.rglob("*") if not path.is_dir())
  else:
    found = folder.files()
  return sorted({path.relative_to(folder).as_posix() for path in found} - {HASHES})


def hashes(folder: pathlib.Path, names: Sequence[str]) -> dict[str, str]:
  """{name: SHA-256} of files in a folder, read in parallel."""
  with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    digests = pool.map(lambda name: sha256(folder / name), names)
    return dict(zip(names, digests, strict=True))


def write_hashes(folder: pathlib.Path) -> None:
  """Writes the hash of every file, for `check_hashes`; call it last."""
  write_json(folder / HASHES, {"files": hashes(folder, names(folder))})


def check_hashes(folder: pathlib.Path) -> None:
  """Raises InputError for a file that is missing or changed since `write_hashes`.

  Later files are ignored; a folder without hashes passes.
  """
  noted = folder / HASHES
  if not noted.exists():
    return
  want = read_json(noted).get("files")
  if not isinstance(want, dict):
    raise InputError(f"{noted} is damaged: it names no files; restore it from a copy")
  found = hashes(folder, [name for name in want if (folder / name).is_file()])
  for name, digest in want.items():
    if found.get(name) != digest:
      state = "is not as it was written" if name in found else "is missing"
      raise InputError(
        f"{folder / name} {state}: restore it from a copy, or delete {noted} if you"
        " changed it yourself"
      )


def decode(content: bytes, where: str) -> str:
  """UTF-8 text without a byte-order mark.

  >>> decode(b"\\xef\\xbb\\xbfa", "x")
  'a'
  """
  try:
    return content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise InputError(
      f"{where} is not UTF-8 text (byte {error.start}); convert it, e.g. with iconv"
    ) from None


def read_bytes(path: pathlib.Path) -> bytes:
  """The content of a file; InputError says why it cannot be read."""
  try:
    return path.read_bytes()
  except OSError as error:
    raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def read(path: pathlib.Path) -> str:
  """The text of a UTF-8 file, line ends unchanged; see `decode`."""
  return decode(read_bytes(path), str(path))


def _lines(content: str) -> Iterator[str]:
  start = 0
  while start < len(content):
    end = content.find("\n", start)
    end = len(content) if end < 0 else end
    yield content[start:end].removesuffix("\r")
    start = end + 1


def lines(content: str) -> list[str]:
  r"""Lines, which end only at \n or \r\n.

  `str.splitlines` also splits at form feeds, U+0085, U+2028 and the like.

  >>> lines("a\u2028b\r\nc\n")
  ['a\u2028b', 'c']
  """
  return list(_lines(content))


_MAX_DIGITS = 308  # of a whole number, so that a float can hold it
_MAX_DEPTH = 100  # of nested lists and objects, so that recursion is safe


def check_depth(value: Any, where: str) -> None:
  """Raises InputError for lists and objects nested more than 100 levels deep."""
  level, depth = [value], 0
  while level := [
    item
    for parent in level
    if isinstance(parent, dict | list | tuple | set)
    for item in (parent.values() if isinstance(parent, dict) else parent)
  ]:
    depth += 1
    if depth > _MAX_DEPTH:
      raise InputError(f"{where} is nested too deeply; at most {_MAX_DEPTH} levels")


def _whole_number(digits: str) -> int:
  if len(digits) > _MAX_DIGITS:
    raise ValueError(f"a number of {len(digits)} digits; at most {_MAX_DIGITS}")
  return int(digits)


def parse_json(content: str | bytes, where: str) -> Any:
  """The value of an untrusted JSON text.

  Args:
    where: of the text, for the message.

  Raises:
    InputError: not JSON, not UTF-8, nested too deeply, or a number of too many digits.
  """
  text = decode(content, where) if isinstance(content, bytes) else content
  try:
    value = json.loads(text, parse_int=_whole_number)
  except (RecursionError, MemoryError):
    raise InputError(f"{where} is nested too deeply") from None
  except ValueError as error:
    raise InputError(f"{where} is not JSON: {error}") from None
  if text.count("[") + text.count("{") > _MAX_DEPTH:
    check_depth(value, where)
  return value


def _of_kind(value: Any, kind: type, where: str) -> Any:
  if not isinstance(value, kind):
    wanted = {dict: "JSON object with named fields", list: "JSON array"}[kind]
    raise InputError(f"{where} is not a {wanted}")
  return value


def read_json(path: pathlib.Path, *, kind: type = dict) -> Any:
  """The value of a JSON file, which must be a `kind` (dict: an object, list: an array).

  Raises:
    InputError: see `parse_json`; another kind of value.
  """
  return _of_kind(parse_json(read_bytes(path), str(path)), kind, str(path))


def finite(value: Any) -> Any:
  """The value with None for NaN and infinities, which JSON lacks."""
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, Mapping):
    return {key: finite(item) for key, item in value.items()}
  return list(map(finite, value)) if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a path to write to, which replaces `path` if the body succeeds.

  A reader sees the old file or the new one, never a part; on failure it is removed.
  """
  partial = path.with_name(f"{path.name}.partial")
  try:
    yield partial
    partial.replace(path)
  except BaseException:
    partial.unlink(missing_ok=True)
    raise


def write_bytes(path: pathlib.Path, content: bytes) -> None:
  """Writes a file, whole or not at all."""
  if not is_local(path):
    path.write_bytes(content)  # by one request
    return
  with replacing(path) as partial:
    partial.write_bytes(content)


def write(path: pathlib.Path, content: str) -> None:
  """Writes UTF-8 text, whole or not at all; lone surrogates become '?'."""
  write_bytes(path, content.encode("utf-8", "replace"))


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a JSON file, whole or not at all; NaN and infinities become null."""
  write(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def value_sha256(value: Any) -> str:
  """SHA-256 of a JSON value, independent of its formatting.

  >>> value_sha256({"a": 1, "b": [2]}) == value_sha256({"b": [2], "a": 1})
  True
  """
  text = json.dumps(value, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
  """The object plus a hash of itself, which `read_sealed` checks."""
  plain = json.loads(json.dumps(finite(value)))
  return {**plain, SEAL: value_sha256(plain)}


def read_sealed(path: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON file of `sealed` and checks its hash; old files have none.

  Raises:
    InputError: see `read_json`; the hash does not match.
  """
  try:
    value = read_json(path)
  except InputError as error:
    raise type(error)(f"{error}; restore the file from a copy") from None
  seal = value.pop(SEAL, None)
  if seal is not None and seal != value_sha256(value):
    raise InputError(
      f"{path} is damaged: it is not as it was written ({SEAL} does not fit); restore"
      f" it from a copy, or remove {SEAL} if you changed it yourself"
    )
  return value


def parse_records(content: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """(where, object) of each object in a JSON array or line of JSONL.

  Args:
    name: of the file, for messages.
  """
  if content.lstrip().startswith("["):
    parsed = parse_json(content, name)
    items = ((f"{name}[{i}]", item) for i, item in enumerate(parsed))
  else:
    items = (
      (f"{name}:{i}", parse_json(line, f"{name}:{i}"))
      for i, line in enumerate(_lines(content), 1)
      if line.strip()
    )
  yield from ((where, _of_kind(item, dict, where)) for where, item in items)


def records(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """`parse_records` of a file."""
  return parse_records(read(path), str(path))


def fits(value: Any, kinds: Mapping[Any, Any]) -> bool:
  """Whether a value is an object with fields of these kinds."""
  return isinstance(value, dict) and all(
    isinstance(value.get(name, ...), kind) for name, kind in kinds.items()
  )


def field(row: Mapping[str, Any], name: str, where: str) -> Any:
  """row[name]; InputError lists the existing fields."""
  if name not in row:
    raise unknown(f"field (of {where})", name, row)
  return row[name]


def text(value: Any, where: str) -> str:
  """A valid Unicode string, from a string or UTF-8 bytes; else InputError."""
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
  """The named text fields of each record; see `records`."""
  for where, row in records(path):
    yield [text(field(row, name, where), where) for name in names]
