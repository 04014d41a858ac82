"""Compiled programs kept between commands, and a line while one is compiled.

They are in `compiled` of the cache folder (see `files.cache_folder`), which only its
owner may enter, under JAX's own key: the program, the versions, the compiler's flags,
the devices; and the features of this CPU. An entry is written whole, with its hash; one
that is damaged is compiled again. JAX_ENABLE_COMPILATION_CACHE=false turns it off, and
JAX_COMPILATION_CACHE_DIR names another folder, which is JAX's own affair.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

from gen_jax.system import files

MAX_BYTES = 2 * 2**30  # of all entries; at the start of a command the oldest go
_SAID_AFTER_SECS = 3.0
_COMPILING = "/jax/core/compile/backend_compile_duration"  # JAX's event
_DIGEST = hashlib.sha256().digest_size


@contextlib.contextmanager
def kept() -> Iterator[None]:
  """Within this context compiled programs are kept, and looked for, on disk."""
  import jax
  from jax._src import compilation_cache

  is_on = jax.config.jax_enable_compilation_cache
  if not is_on or jax.config.jax_compilation_cache_dir:
    yield
    return
  try:
    folder = _folder()
    _trim(folder)
  except OSError:  # a full or read-only disk, another user's folder
    yield
    return
  before = compilation_cache.get_file_cache
  compilation_cache.reset_cache()
  compilation_cache.get_file_cache = lambda path: (Cache(folder), path)
  secs = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update("jax_compilation_cache_dir", str(folder))
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  try:
    yield
  finally:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", secs)
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.get_file_cache = before
    compilation_cache.reset_cache()


def _folder() -> pathlib.Path:
  """The folder of this machine's programs; made if missing.

  Raises:
    OSError: it cannot be made, or another user may write to it.
  """
  home = files.cache_folder("compiled")
  home.mkdir(mode=0o700, parents=True, exist_ok=True)
  found = home.stat()
  if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
    raise PermissionError(home)
  folder = home / _machine()
  folder.mkdir(mode=0o700, exist_ok=True)
  return folder


def _machine() -> str:
  """Names the features of the CPU: a home folder may be shared by unlike machines."""
  features = platform.processor()
  with contextlib.suppress(OSError):
    with open("/proc/cpuinfo", encoding="utf-8") as file:
      features += next(
        (line for line in file if line.startswith(("flags", "Feat"))), ""
      )
  digest = hashlib.sha256(features.encode()).hexdigest()[:12]
  return f"{platform.machine()}-{digest}"


def _trim(folder: pathlib.Path) -> None:
  """Removes the entries that were not used for longest, if there are too many."""
  with os.scandir(folder) as entries:
    found = [
      (entry.stat().st_mtime, entry.stat().st_size, entry.path) for entry in entries
    ]
  total = sum(size for _, size, _ in found)
  for _, size, path in sorted(found) if total > MAX_BYTES else ():
    if total <= MAX_BYTES // 2:
      break
    pathlib.Path(path).unlink(missing_ok=True)
    total -= size


class Cache:
  """Programs by JAX's key, each in a file that begins with its hash."""

  def __init__(self, folder: pathlib.Path):
    self._path = folder

  def get(self, key: str) -> bytes | None:
    """The program; None: it must be compiled."""
    path = self._path / key
    with contextlib.suppress(OSError):
      content = path.read_bytes()
      if hashlib.sha256(content[_DIGEST:]).digest() == content[:_DIGEST]:
        os.utime(path)
        return content[_DIGEST:]
      path.unlink()  # damaged
    return None

  def put(self, key: str, value: bytes) -> None:
    """Keeps a program, if the disk lets it."""
    with contextlib.suppress(OSError):
      number, partial = tempfile.mkstemp(dir=self._path, prefix="partial-")
      try:
        with open(number, "wb") as file:
          file.write(hashlib.sha256(value).digest() + value)
        os.replace(partial, self._path / key)
      except BaseException:
        os.unlink(partial)
        raise


@contextlib.contextmanager
def shown() -> Iterator[None]:
  """Within this context a terminal shows how long a program has been compiled."""
  import jax

  if not sys.stderr.isatty():
    yield
    return
  clock = Clock()
  jax.monitoring.register_scalar_listener(clock.begin)
  jax.monitoring.register_event_duration_secs_listener(clock.end)
  threading.Thread(target=clock.run, daemon=True).start()
  try:
    yield
  finally:
    clock.is_over.set()
    jax.monitoring.unregister_scalar_listener(clock.begin)
    jax.monitoring.unregister_event_duration_listener(clock.end)


class Clock:
  """Shows how long a program has been compiled.

  Attributes:
    began: when the last one was; None: nothing is compiled.
    is_over: set to end `run`.
  """

  def __init__(self):
    self.began: float | None = None
    self.is_over = threading.Event()

  def begin(self, event: str, value: float, **_) -> None:
    """JAX begins something."""
    if event == _COMPILING:
      self.began = time.monotonic()

  def end(self, event: str, secs: float, **_) -> None:
    """JAX has done something."""
    if event == _COMPILING:
      self.began = None

  def run(self, pause: float = 0.5) -> None:
    """Writes a line over and over, and wipes it."""
    is_shown = False
    while not self.is_over.wait(pause) or is_shown:
      began = self.began
      secs = 0.0 if began is None else time.monotonic() - began
      with contextlib.suppress(OSError):
        if secs > _SAID_AFTER_SECS and not self.is_over.is_set():
          print(f"\rcompiling ... {secs:.0f} s", end="", file=sys.stderr, flush=True)
          is_shown = True
        elif is_shown:
          print("\r\x1b[K", end="", file=sys.stderr, flush=True)
          is_shown = False
