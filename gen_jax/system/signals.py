"""Stop signals: in any phase the process ends within seconds, and nothing is lost.

SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 mean the same. The effect depends on what
the main thread does:

- By default there is nothing to lose: `Interrupted` is raised in the main thread. If it
  runs no bytecode for `_PATIENCE_SECS` (XLA compiles), a thread ends the process.
- In `importing` the process ends at once: C code that imports would print the
  exception.
- In `deferred` it is raised at the end: callbacks of libraries would swallow it.
- In `held` a signal is only recorded; the body polls `asked`.
- In `rescued`, within `held`, the body has `_PATIENCE_SECS` to end. Then a thread calls
  `save` and ends the process.

A second signal ends the process at once. A signal of another kind within a second is
not a second one: session managers send two kinds together.
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
EXIT = os.EX_TEMPFAIL  # not finished: the same command continues
_PATIENCE_SECS = 5.0


class Interrupted(KeyboardInterrupt):
  """A stop signal came where there is nothing to save.

  A KeyboardInterrupt, because asyncio, in whose callbacks checkpoints are read, passes
  on no other exception: it prints it and continues.
  """


@dataclasses.dataclass(eq=False)
class _Asked:
  """The first signal: number, time, and whether it raised `Interrupted`."""

  number: int
  at: float = dataclasses.field(default_factory=time.monotonic)
  raised: bool = False  # in the main thread

  def is_again(self, number: int) -> bool:
    """Whether another signal counts as a second request."""
    return number == self.number or time.monotonic() - self.at > 1.0


# Signals are per process, and so is this state.
_asked: _Asked | None = None  # seen by the main thread
_seen: _Asked | None = None  # seen by the listening thread, while the main one cannot
_holds, _defers, _is_handling, _imports = 0, 0, False, False
_free_since, _handled_at = 0.0, 0.0
_save: Callable[[], None] | None = None
_lock = threading.Lock()  # guards _save while it runs


@contextlib.contextmanager
def handling(again: Callable[[int], None] | None = None) -> Iterator[None]:
  """Handles stop signals within this context; only in the main thread.

  Ignored signals stay ignored (nohup).

  Args:
    again: called with the number of a second signal; None: the previous handler is.
  """
  global _is_handling
  if _is_handling or threading.current_thread() is not threading.main_thread():
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
  _is_handling = True
  try:
    yield
  finally:
    _is_handling = False
    for number, old in previous.items():
      signal.signal(number, old or signal.SIG_DFL)
    signal.set_wakeup_fd(old_file)
    theirs.close()
    listener.join()
    forget()


def _handle(number: int, again: Callable[[int], None]) -> None:
  """The signal handler; runs in the main thread once it executes bytecode."""
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
  _asked = _Asked(number, raised=not (_holds or _defers))
  threading.Thread(target=_insist, args=(_asked,), daemon=True).start()
  if _asked.raised:
    raise Interrupted


def _listen(ours: socket.socket) -> None:
  """Receives signals while the main thread executes no bytecode."""
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
  """Ends the process if the main thread does not."""
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
  """Ends the process without closing libraries, whose threads may still compute."""
  say("gen-jax: stopped; the same command goes on")
  os._exit(EXIT)


def die(number: int) -> None:
  """Ends the process at once."""
  say("gen-jax: stopped at once")
  os._exit(128 + number)


def say(line: str) -> None:
  """Writes a line to stderr, safely in a handler that may have interrupted `print`."""
  with contextlib.suppress(OSError):
    os.write(2, f"{line}\n".encode())


def _leave_terminal() -> None:
  """Redirects output to /dev/null: after a hang-up writes to the terminal fail."""
  for stream in (1, 2):
    with contextlib.suppress(OSError):
      if os.isatty(stream):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def asked() -> int | None:
  """The number of the stop signal, or None."""
  return _asked and _asked.number


def was_raised() -> bool:
  """Whether `Interrupted` was raised; C++ layers may turn it into other exceptions."""
  return _asked is not None and _asked.raised


def forget() -> None:
  """Resets the state: the next signal is a first one again."""
  global _asked, _seen
  _asked = _seen = None


@contextlib.contextmanager
def importing() -> Iterator[None]:
  """Within this context a handled signal ends the process at once."""
  global _imports
  outer, _imports = _imports, _is_handling
  try:
    yield
  finally:
    _imports = outer


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Within this context a signal is only recorded; `Interrupted` is raised at its end.

  For calls into libraries that run callbacks, which swallow exceptions or turn them
  into others. A body that takes long ends with the process, as elsewhere.
  """
  global _defers
  _defers += 1
  try:
    yield
  finally:
    _defers -= 1
    if _asked and not (_asked.raised or _holds or _defers):
      _asked.raised = True
      raise Interrupted


@contextlib.contextmanager
def held() -> Iterator[None]:
  """Within this context a signal is only recorded; poll `asked`."""
  global _holds, _free_since
  with handling():
    _holds += 1
    try:
      yield
    finally:
      _free_since = time.monotonic()
      _holds -= 1


@contextlib.contextmanager
def rescued(save: Callable[[], None]) -> Iterator[None]:
  """Within this context `save` is called if the body runs long after a signal.

  It runs in another thread, while the body continues; then the process ends. The body
  must not interfere with `save`. Of bodies that are not in the main thread there may be
  several at once: they only poll `asked`.
  """
  global _save
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  with _lock:
    outer, _save = _save, save
  try:
    yield
  finally:
    with _lock:  # never released by a thread that saves
      _save = outer
