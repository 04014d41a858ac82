"""Progress of a long command: a bar on a terminal, occasional lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax
import rich.console
import rich.progress

T = TypeVar("T")
_FIRST_SECS = 5.0  # before the first line
_EVERY_SECS = 30.0  # between lines


def warn(text: str) -> None:
  """Says a line that is no part of a command's result."""
  print(f"gen-jax: {text}", file=sys.stderr)


def track(items: Iterable[T], total: int, what: str, done: int = 0) -> Iterator[T]:
  """Yields the items; shows a bar if stderr is a terminal, else as `lines`.

  Args:
    total: number of items, earlier ones included.
    what: names the items, "images encoded".
    done: number of items done in an earlier run, not counted for the speed.
  """
  if jax.process_index() or not sys.stderr.isatty():
    yield from lines(items, total, what, done)
    return
  columns = (
    rich.progress.TextColumn("{task.description}"),
    rich.progress.BarColumn(bar_width=20),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TimeRemainingColumn(),
  )
  console = rich.console.Console(stderr=True)
  with rich.progress.Progress(*columns, console=console, transient=True) as bar:
    task = bar.add_task(what, total=total, completed=done)
    for item in items:
      yield item
      bar.advance(task)


def lines(items: Iterable[T], total: int, what: str, done: int = 0) -> Iterator[T]:
  """Yields the items; prints now and then how many are done, and the time left.

  Silent for the first seconds, and in all processes but the first. It can be used next
  to another bar. See `track`.
  """
  due = time.monotonic() + _FIRST_SECS
  for count, item in enumerate(items):
    yield item
    now = time.monotonic()
    if count == 0:
      began = now  # the first item compiles: not counted for the speed
    elif now >= due and done + count + 1 < total and not jax.process_index():
      left = int((now - began) / count * (total - done - count - 1))
      eta = f"{left // 60}:{left % 60:02d}"
      print(
        f"{done + count + 1} of {total} {what}, ETA {eta}", file=sys.stderr, flush=True
      )
      due = now + _EVERY_SECS
