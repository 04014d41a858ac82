"""Told to stop, in any phase: the process ends within seconds, and nothing is lost.

SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 all ask for the same. What follows depends
on what the main thread does:

- By default there is nothing to lose: `Interrupted` is raised there, between two
  bytecodes. Where none comes for `_PATIENCE_SECS` (XLA compiles), a thread ends the
  process.
- In `importing` the process ends where it stands: C code that imports would print an
  exception that passes through it.
- In `held` a signal is noted and no more; the body looks at `asked`.
- In `rescued`, within `held`, the body has `_PATIENCE_SECS` to end by itself. Then a
  thread saves what is known and ends the process.

A second signal ends the process at once. Another one within a second is not a second
one: session managers send two kinds together.
"""

import contextlib
import dataclasses
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

ASKING = (
  *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
  *(signal.SIGUSR1, signal.SIGUSR2),
)
EXIT = os.EX_TEMPFAIL  # not finished: the same command goes on
_PATIENCE_SECS = 5.0


class Interrupted(BaseException):
  """A signal asked for the end, where there is nothing to lose."""


@dataclasses.dataclass(eq=False)
class _Asked:
  """The first signal, and how often the kernel and Python saw one."""

  number: int
  at: float = dataclasses.field(default_factory=time.monotonic)
  raised: bool = False  # in the main thread

  def is_again(self, number: int) -> bool:
    """Whether another signal is a second request."""
    return number == self.number or time.monotonic() - self.at > 1.0


# Signals belong to the process, and so does what is known of them.
_asked: _Asked | None = None  # by the main thread
_seen: _Asked | None = None  # by the thread that listens, while the main one cannot
_holds, _hears, _imports, _free_since, _handled_at = 0, False, False, 0.0, 0.0
_save: Callable[[], None] | None = None
_lock = threading.Lock()  # of _save: whoever has begun to save is not disturbed


@contextlib.contextmanager
def heard(again: Callable[[int], None] | None = None) -> Iterator[None]:
  """In here signals that ask for the end are heard; in the main thread alone.

  Those that are ignored stay so (nohup).

  Args:
    again: called with the number of a second signal; without it, what was there
      before handles that one.
  """
  global _hears
  if _hears or threading.current_thread() is not threading.main_thread():
    yield
    return
  previous = {n: signal.getsignal(n) for n in ASKING}
  previous = {n: old for n, old in previous.items() if old != signal.SIG_IGN}

  def before(number: int) -> None:
    signal.signal(number, previous[number] or signal.SIG_DFL)
    os.kill(os.getpid(), number)

  ours, theirs = socket.socketpair()
  theirs.setblocking(False)
  again = again or before
  old_file = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
  listener = threading.Thread(target=_listen, args=(ours,), daemon=True)
  listener.start()
  for number in previous:
    signal.signal(number, lambda number, _: _handle(number, again))
  _hears = True
  try:
    yield
  finally:
    _hears = False
    for number, old in previous.items():
      signal.signal(number, old or signal.SIG_DFL)
    signal.set_wakeup_fd(old_file)
    theirs.close()
    listener.join()
    forget()


def _handle(number: int, again: Callable[[int], None]) -> None:
  """In the main thread, when it comes to Python."""
  global _asked, _handled_at
  _handled_at = time.monotonic()
  if _asked is not None:
    if _asked.is_again(number):
      again(number)
    return
  if number == signal.SIGHUP:
    _leave_terminal()
  if _imports:
    stop()
  _asked = _Asked(number, raised=not _holds)
  threading.Thread(target=_insist, args=(_asked,), daemon=True).start()
  if _asked.raised:
    raise Interrupted


def _listen(ours: socket.socket) -> None:
  """Hears what the main thread cannot, while it is not in Python."""
  global _seen
  with ours:
    while numbers := ours.recv(64):
      at = time.monotonic()
      time.sleep(0.3)
      if _handled_at > at - 1.0:  # by the main thread, a moment ago or by now
        continue
      for number in filter(ASKING.__contains__, numbers):
        first = _asked or _seen
        if first is None:
          _seen = _Asked(number)
          threading.Thread(target=_insist, args=(_seen,), daemon=True).start()
        elif first.is_again(number):
          die(number)


def _insist(request: _Asked) -> None:
  """Ends the process if its main thread does not."""
  time.sleep(_PATIENCE_SECS)
  while request in (_asked, _seen):
    with _lock:
      if _save is not None:
        _rescue(_save)
      is_slow = time.monotonic() - _free_since > _PATIENCE_SECS
      if not _holds and is_slow and request in (_asked, _seen):
        stop()
    time.sleep(0.1)


def _rescue(save: Callable[[], None]) -> NoReturn:
  try:
    save()
  except BaseException as error:
    say(f"gen-jax: error: {' '.join(str(error).splitlines())}")
    os._exit(2)
  say("gen-jax: interrupted; what was done is saved")
  os._exit(EXIT)


def stop() -> NoReturn:
  """Ends the process without taking libraries down: their threads may still compute."""
  say("gen-jax: stopped; the same command goes on")
  os._exit(EXIT)


def die(number: int) -> None:
  """Ends the process at once."""
  say("gen-jax: stopped at once")
  os._exit(128 + number)


def say(line: str) -> None:
  """A line on stderr, from a handler: `print` may be what was interrupted."""
  with contextlib.suppress(OSError):
    os.write(2, f"{line}\n".encode())


def _leave_terminal() -> None:
  """It hung up: what is still printed would fail."""
  for stream in (1, 2):
    with contextlib.suppress(OSError):
      if os.isatty(stream):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def asked() -> int | None:
  """The signal that asked for the end, if one did."""
  return _asked and _asked.number


def was_raised() -> bool:
  """Whether `Interrupted` was raised; layers of C++ make other exceptions of it."""
  return _asked is not None and _asked.raised


def forget() -> None:
  """What was asked is done: the next signal is a first one again."""
  global _asked, _seen
  _asked = _seen = None


@contextlib.contextmanager
def importing() -> Iterator[None]:
  """In here nothing has begun: a signal that is heard ends the process at once."""
  global _imports
  outer, _imports = _imports, _hears
  try:
    yield
  finally:
    _imports = outer


@contextlib.contextmanager
def held() -> Iterator[None]:
  """In here a signal is noted, and nothing more; ask `asked`."""
  global _holds, _free_since
  with heard():
    _holds += 1
    try:
      yield
    finally:
      _free_since = time.monotonic()
      _holds -= 1


@contextlib.contextmanager
def rescued(save: Callable[[], None]) -> Iterator[None]:
  """In here, when a signal came and the body goes on for long, `save` is called.

  In another thread, while the main one goes on; then the process ends. What the body
  does must not disturb `save`.
  """
  global _save
  with _lock:
    outer, _save = _save, save
  try:
    yield
  finally:
    with _lock:  # who saves never gives it back
      _save = outer
