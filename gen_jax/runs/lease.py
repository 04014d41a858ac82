"""A lease on a folder: of all processes that would write into it, one may.

The holder makes lease.json with O_EXCL and writes a counter into it that a thread
raises. No clocks are compared and no locks of the file system are asked for, so this
holds on network file systems too:

- A holder on this machine lives or does not: its process is looked up.
- A holder elsewhere lives as long as its counter moves. One that stands still for
  `_STALE_SECS` of the reader's own clock is taken over.
- Who takes over first makes a file named after the old lease, with O_EXCL, so that of
  several only one does; then the new lease replaces the old one.
- A holder that finds another lease in place of its own (it was suspended) ends at once.

In a bucket a file is made by a request that fails where it is there already, and the
counter goes into a file next to it, which only the holder writes.
"""

import contextlib
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from gen_jax.errors import InputError
from gen_jax.system import exclusive, files

NAME = "lease.json"
_STALE_SECS = 60.0
_RENEW_SECS = 5.0
_LOST = 2  # the exit code of a run whose lease another one took
_WIDTH = 512  # bytes of the file, so that a renewal overwrites in place


@contextlib.contextmanager
def hold(folder: pathlib.Path, name: str = NAME) -> Iterator[None]:
  """Holds the lease of a folder, which is made if it is not there.

  Args:
    name: of the file; another one is a lease on another work in the same folder.

  On leaving, the lease goes, and so do folders made here that are still empty.

  Raises:
    InputError: another run holds it, or it cannot be written.
  """
  new = [path for path in (folder, *folder.parents) if not path.exists()]
  try:
    try:
      folder.mkdir(parents=True, exist_ok=True)
      record, file = _acquire(folder / name)
    except OSError as error:
      raise InputError(
        f"cannot write to --workdir {folder}: {error.strerror or error}; take another"
        " one"
      ) from None
    over = threading.Event()
    words = (folder / name, record, file, over)
    renewing = threading.Thread(target=_renew, args=words, daemon=True)
    renewing.start()
    try:
      yield
    finally:
      over.set()
      renewing.join(_RENEW_SECS)
      with contextlib.suppress(OSError, InputError):
        if _read(folder / name).get("id") == record["id"]:
          (folder / name).unlink()
        file.close()
  finally:
    for path in new:
      with contextlib.suppress(OSError):  # what holds something stays
        path.rmdir()


def _encoded(record: dict[str, Any]) -> bytes:
  return json.dumps(record).encode().ljust(_WIDTH - 1) + b"\n"


def _aside(path: pathlib.Path, record: dict[str, Any]) -> pathlib.Path:
  """A name for the holder alone; in a bucket its counter goes there."""
  return path.with_name(f"{path.name}.{record.get('id', 'unknown')}")


def _create(path: pathlib.Path, record: dict[str, Any]) -> exclusive.Own:
  return exclusive.make(path, _encoded(record), _aside(path, record))


def _acquire(path: pathlib.Path) -> tuple[dict[str, Any], exclusive.Own]:
  """This process's record, and the open file that holds it."""
  record = {
    "host": socket.gethostname(),
    "pid": os.getpid(),
    "machine": _machine(),
    "began": _began(os.getpid()),
    "id": secrets.token_hex(8),
    "count": 0,
  }
  while True:
    with contextlib.suppress(FileExistsError):
      return record, _create(path, record)
    if (stale := _wait_until_stale(path)) is None:
      continue
    ticket = path.with_name(f"{path.name}.taken-{stale.get('id', 'unknown')}")
    try:
      _create(ticket, record).close()
    except FileExistsError:  # somebody else is about to take it over
      _wait_until_gone(ticket)
      continue
    try:
      if _read(path) == stale:
        file = exclusive.take(path, _encoded(record), _aside(path, record))
        if not files.is_local(path):
          _aside(path, stale).unlink(missing_ok=True)
        return record, file
    finally:
      ticket.unlink(missing_ok=True)


def _read(path: pathlib.Path) -> dict[str, Any]:
  """The record there; without names where it is half written or somebody's own."""
  record = _parsed(path)
  if files.is_local(path) or not record:
    return record
  return _parsed(_aside(path, record)) or record  # with its counter


def _parsed(path: pathlib.Path) -> dict[str, Any]:
  with contextlib.suppress(OSError, ValueError, RecursionError):
    record = json.loads(path.read_bytes())
    return record if isinstance(record, dict) else {}
  return {}


def _wait_until_gone(ticket: pathlib.Path) -> None:
  """Returns when it is not there; one that stays was left by a process that died."""
  since = time.monotonic()
  while ticket.exists():
    if time.monotonic() - since > _STALE_SECS:
      ticket.unlink(missing_ok=True)
    time.sleep(0.1)


def _wait_until_stale(path: pathlib.Path) -> dict[str, Any] | None:
  """The record of a holder that is no more, None if it let go; else InputError."""
  record, since, told = _read(path), time.monotonic(), False
  while path.exists():
    who = f"host {record.get('host', 'unknown')}, process {record.get('pid', '?')}"
    if record.get("machine") == _machine():
      if not _lives(record):
        return record
      _refuse(path, who)
    time.sleep(0.2 if record else 1.0)
    found = _read(path)
    if found != record and record:
      _refuse(path, who)
    if found != record:
      record, since = found, time.monotonic()
    if time.monotonic() - since > _STALE_SECS:
      return record
    if not told and time.monotonic() - since > 1.0:
      told = True
      print(
        f"gen-jax: {path.parent} was left by another run ({who}), or it is at work"
        f" there; watching it for up to {_STALE_SECS:g} s",
        file=sys.stderr,
        flush=True,
      )
  return None


def _refuse(path: pathlib.Path, who: str) -> NoReturn:
  raise InputError(
    f"another run ({who}) is at work in {path.parent}: wait for its end, stop it, or"
    " take another --workdir"
  )


def _renew(
  path: pathlib.Path, record: dict[str, Any], file: exclusive.Own, over: threading.Event
) -> None:
  """Raises the counter until `over`; ends the process when the lease is another's."""
  while not over.wait(_RENEW_SECS):
    found = _read(path)
    other = found.get("id")
    if other == record["id"]:
      record["count"] += 1
      with contextlib.suppress(OSError, InputError):  # full, or away, for a while
        file.write(_encoded(record))
    elif other is not None and not over.is_set():
      print(
        f"gen-jax: error: another run (host {found.get('host')}, process"
        f" {found.get('pid')}) took over {path.parent} while this one stood still;"
        " this one ends",
        file=sys.stderr,
        flush=True,
      )
      os._exit(_LOST)
    else:
      with contextlib.suppress(OSError, InputError):
        if not path.exists():  # deleted by hand
          file.again(_encoded(record))


def _machine() -> str:
  """What must be the same for a process id to mean the same process."""
  with contextlib.suppress(OSError):
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
  return socket.gethostname()


def _began(pid: int) -> str | None:
  """When a process started, in the kernel's ticks; None: there is none, or a zombie."""
  try:
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return None
  state, *fields = stat.rpartition(")")[2].split()
  return None if state in "ZX" else fields[18]


def _lives(record: dict[str, Any]) -> bool:
  pid = record.get("pid")
  if not isinstance(pid, int):
    return False
  if pathlib.Path("/proc/self/stat").exists():
    return _began(pid) == record.get("began")
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  return True
