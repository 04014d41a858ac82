"""The queue before the slots: who is told what, and when."""

import pytest

from gen_jax.inference import slots
from gen_jax.serving import worker


class Row:
  """A continuation of as many letters as its job asks for."""

  def __init__(self, job):
    self.left, self.done, self.tokens = job.max_tokens, False, []


class Batch:
  """Two slots that draw a letter at a time; the work of `Slots` without its model."""

  def __init__(self):
    self.rows = []

  room = property(lambda self: 2 - len(self.rows))

  def admit(self, job):
    self.rows.append(Row(job))
    return self.rows[-1]

  def drop(self, row):
    self.rows.remove(row)

  def advance(self):
    for row in self.rows:
      row.left -= 1
      row.tokens.append(0)
      row.done = row.left == 0
    found = [(row, "a") for row in self.rows]
    self.rows = [row for row in self.rows if not row.done]
    return found


def job(size):
  return slots.Job([1], None, size, 0.0, 1.0, ())


def turns(num):
  """Says False `num` times: how long a worker runs."""
  left = iter([False] * num)
  return lambda: next(left, True)


@pytest.fixture
def told(monkeypatch):
  monkeypatch.setattr(worker, "_LOOK_SECS", 0.0)
  return []


def test_all_are_drawn_in_turn(told):
  own = worker.Worker(Batch(), most=5, secs=60)
  assert own.submit([job(n) for n in (3, 1, 2)], told.append)
  assert own.submit([job(1)] * 3, told.append) is None  # no room for all three
  assert own.submit([job(1)] * 2, told.append)
  assert own.load == {"running": 0, "queued": 5}
  own.run(turns(20))
  ends = [news.index for news in told if news.is_done]
  assert ends == [0, 1, 0, 1, 2] and own.answered == 5  # firsts before seconds
  assert "".join(news.text for news in told if news.index == 0) == "aaaa"
  assert not any(news.error for news in told)
  parts = [(n.start, n.stop) for n in told if n.index == 0 and len(n.row.tokens) == 3]
  assert parts == [(0, 1), (1, 2), (2, 3)]  # every token is told of once
  assert own.submit([job(1)], told.append) is None  # it has ended


def test_who_asks_for_much_holds_nobody_up(told):
  """All its continuations but the first come after those who ask for one."""
  own, others = worker.Worker(Batch(), most=50, secs=60), []
  own.submit([job(9)] * 9, lambda news: told.append(len(others)))
  for _ in range(3):
    own.submit([job(1)], others.append)
  own.run(turns(100))
  assert len(others) == 3 and told[8:10] == [3, 3]


def test_who_left_is_not_drawn_for(told):
  own = worker.Worker(Batch(), most=5, secs=60)
  first = own.submit([job(100), job(100)], told.append)
  own.run(turns(3))
  assert [news.error for news in told[-2:]] == ["the server stops"] * 2
  own = worker.Worker(Batch(), most=5, secs=60)
  first = own.submit([job(100), job(100), job(100)], told.append)
  second = own.submit([job(1)], told.append)
  own.leave(first)
  assert own.load == {"running": 0, "queued": 1}
  told.clear()
  own.run(turns(2))
  assert [(n.index, n.text, n.error) for n in told] == [(0, "a", None)] and second
  own = worker.Worker(batch := Batch(), most=5, secs=60)
  first = own.submit([job(100)] * 2, lambda news: own.leave(first))  # while it is drawn
  own.run(turns(3))
  assert batch.rows == []


def test_who_is_late_is_told(told):
  own = worker.Worker(batch := Batch(), most=5, secs=0)
  own.submit([job(100)] * 3, told.append)
  own.run(turns(2))
  assert [n.error for n in told] == ["it took longer than 0 s"] * 3
  assert batch.rows == [] and own.answered == 0
