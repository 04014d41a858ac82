"""Progress of a long command: a bar on a terminal, a line in a notebook, else lines."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax
import rich.console
import rich.progress

T = TypeVar("T")
_FIRST_SECS = 5.0  # before the first line
_EVERY_SECS = 30.0  # between lines
_REDRAWN_SECS = 0.2  # between changes of a notebook's line
_live: list[rich.progress.Progress] = []  # bars at work: two would draw over each other


def warn(text: str) -> None:
  """Says a line that is no part of a command's result."""
  print(f"gen-jax: {text}", file=sys.stderr)


@contextlib.contextmanager
def bar(
  *columns: rich.progress.ProgressColumn, transient: bool = False
) -> Iterator[rich.progress.Progress]:
  """A bar on stderr; until it ends, `track` shows lines, which rich puts above it."""
  console = rich.console.Console(stderr=True)
  with rich.progress.Progress(*columns, console=console, transient=transient) as made:
    _live.append(made)
    try:
      yield made
    finally:
      _live.remove(made)


def track(items: Iterable[T], total: int, what: str, done: int = 0) -> Iterator[T]:
  """Yields the items; shows a bar on a terminal, one line in a notebook, else `lines`.

  Args:
    total: number of items, earlier ones included.
    what: names the items, "images encoded".
    done: number of items done in an earlier run, not counted for the speed.
  """
  if jax.process_index() == 0 and not _live:
    if sys.stderr.isatty():
      return _on_terminal(items, total, what, done)
    if (shell := _notebook()) is not None:
      return _in_notebook(shell, items, total, what, done)
  return lines(items, total, what, done)


def _on_terminal(items: Iterable[T], total: int, what: str, done: int) -> Iterator[T]:
  columns = (
    rich.progress.TextColumn("{task.description}"),
    rich.progress.BarColumn(bar_width=20),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TimeElapsedColumn(),
    rich.progress.TextColumn("ETA"),
    rich.progress.TimeRemainingColumn(),
  )
  with bar(*columns, transient=True) as shown:
    task = shown.add_task(what, total=total, completed=done)
    for item in items:
      yield item
      shown.advance(task)


def _notebook() -> Any:
  """The shell of a notebook, None outside; imports nothing."""
  package = sys.modules.get("IPython")
  shell = package.get_ipython() if package is not None else None
  return shell if hasattr(shell, "kernel") else None


def _in_notebook(
  shell: Any, items: Iterable[T], total: int, what: str, done: int
) -> Iterator[T]:
  """Shows one line that changes, without widgets."""
  began = time.monotonic()
  due, first, key = began, began, f"gen_jax_{id(object())}_{began}"

  def show(text: str, update: bool) -> None:
    content, about = {"text/plain": text}, {"display_id": key}
    shell.display_pub.publish(content, transient=about, update=update)

  show(f"{done} of {total} {what}", False)
  for count, item in enumerate(items, 1):
    yield item
    now = time.monotonic()
    first = now if count == 1 else first
    if now >= due or done + count == total:
      eta = _eta(now - first, count - 1, total - done - count)
      show(f"{done + count} of {total} {what}, {int(now - began)} s{eta}", True)
      due = now + _REDRAWN_SECS


def _eta(secs: float, num: int, left: int) -> str:
  """The time that `left` items will take if `num` took secs; "" if unknown."""
  if not num or not left:
    return ""
  more = int(secs / num * left)
  return f", ETA {more // 60}:{more % 60:02d}"


def lines(items: Iterable[T], total: int, what: str, done: int = 0) -> Iterator[T]:
  """Yields the items; prints now and then how many are done, and the time left.

  Silent for the first seconds, and in all processes but the first. For a body that
  prints, and next to another bar. See `track`.
  """
  due = time.monotonic() + _FIRST_SECS
  for count, item in enumerate(items, 1):
    yield item
    now = time.monotonic()
    if count == 1:
      began = now  # the first item compiles: not counted for the speed
    elif now >= due and done + count < total and not jax.process_index():
      eta = _eta(now - began, count - 1, total - done - count)
      print(f"{done + count} of {total} {what}{eta}", file=sys.stderr, flush=True)
      due = now + _EVERY_SECS
