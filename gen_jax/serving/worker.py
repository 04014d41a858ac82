"""Requests wait in a queue; one thread draws for as many at once as have room.

It waits for nobody: what is drawn is handed over, and read whenever a client reads.
"""

import bisect
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gen_jax.inference import slots, text_generator

_LOOK_SECS = 0.2  # between looks at whether to stop


class News(NamedTuple):
  """What became of a continuation.

  Attributes:
    index: of it among those that were submitted together.
    text: that is new.
    row: it; it grows until it is done.
    is_done: whether this is all of it.
    start, stop: numbers of its tokens that are new.
    error: why it ends here without being done; None else.
  """

  index: int
  text: str = ""
  row: text_generator.Row | None = None
  is_done: bool = False
  start: int = 0
  stop: int = 0
  error: str | None = None


@dataclasses.dataclass(eq=False)
class Ticket:
  """A continuation that somebody waits for.

  Attributes:
    index, job: see `News` and `Slots`.
    tell: called in the drawing thread; must not block.
    due: time.monotonic() after which nobody waits.
    is_left: nobody waits any longer.
    num_told: tokens that `tell` has been given.
  """

  index: int
  job: slots.Job
  tell: Callable[[News], None]
  due: float
  is_left: bool = False
  num_told: int = 0

  def news(self, row: text_generator.Row, text: str) -> News:
    """What is new of the continuation."""
    start, self.num_told = self.num_told, len(row.tokens)
    return News(self.index, text, row, row.done, start, self.num_told)


def _turn(ticket: Ticket) -> tuple[int, float]:
  """The first continuation of a request comes before the second of another one."""
  return ticket.index, ticket.due


class Worker:
  """A queue before the slots.

  Attributes:
    batch: the slots.
    most: continuations that may wait, without those that are being drawn.
    secs: a continuation that takes longer, waiting included, is given up.
    answered: continuations that were drawn to their end.
  """

  def __init__(self, batch: slots.Slots, most: int, secs: float):
    self.batch, self.most, self.secs, self.answered = batch, most, secs, 0
    self._queue: list[Ticket] = []  # in the order of `_turn`
    self._drawing: dict[text_generator.Row, Ticket] = {}
    self._changed = threading.Condition()

  @property
  def load(self) -> dict[str, int]:
    """How many continuations are being drawn, and how many wait."""
    return {"running": len(self._drawing), "queued": len(self._queue)}

  def submit(
    self, jobs: Sequence[slots.Job], tell: Callable[[News], None]
  ) -> list[Ticket] | None:
    """Queues jobs, from any thread; None if there is no room for all of them."""
    due = time.monotonic() + self.secs
    tickets = [Ticket(i, job, tell, due) for i, job in enumerate(jobs)]
    with self._changed:
      if len(self._queue) + len(tickets) > self.most:
        return None
      for ticket in tickets:
        bisect.insort(self._queue, ticket, key=_turn)
      self._changed.notify()
    return tickets

  def leave(self, tickets: Sequence[Ticket]) -> None:
    """Says, from any thread, that nobody waits for these any longer."""
    with self._changed:
      for ticket in tickets:
        ticket.is_left = True
      self._queue = [ticket for ticket in self._queue if not ticket.is_left]

  def run(self, is_over: Callable[[], object]) -> None:
    """Draws until `is_over`, then tells all who still wait that it has ended."""
    try:
      while not is_over():
        with self._changed:
          if not self._queue and not self._drawing:
            self._changed.wait(_LOOK_SECS)
          late = self._late()
          coming = self._coming()
        for ticket in late:
          ticket.tell(News(ticket.index, error=f"it took longer than {self.secs:g} s"))
        for ticket in coming:
          row = self.batch.admit(ticket.job)
          if row.done:
            self.answered += 1
            ticket.tell(ticket.news(row, ""))
          else:
            self._drawing[row] = ticket
        if self._drawing:
          self._advance()
    finally:
      with self._changed:
        self.most = 0
        left = [*self._queue, *self._drawing.values()]
      for ticket in left:
        ticket.tell(News(ticket.index, error="the server stops"))

  def _late(self) -> list[Ticket]:
    """Takes out what is overdue, and makes room where nobody waits any longer."""
    now = time.monotonic()
    late = [ticket for ticket in self._queue if ticket.due < now]
    self._queue = [ticket for ticket in self._queue if ticket.due >= now]
    for row, ticket in list(self._drawing.items()):
      if ticket.is_left or ticket.due < now:
        self.batch.drop(row)
        del self._drawing[row]
        late += [] if ticket.is_left else [ticket]
    return late

  def _coming(self) -> list[Ticket]:
    """Takes as many out of the queue as there is room for."""
    coming, self._queue = self._queue[: self.batch.room], self._queue[self.batch.room :]
    return coming

  def _advance(self) -> None:
    for row, text in self.batch.advance():
      ticket = self._drawing[row]
      if row.done:
        del self._drawing[row]
        self.answered += 1
        ticket.tell(ticket.news(row, text))
      elif text and not ticket.is_left:
        ticket.tell(ticket.news(row, text))
