"""Batches that are made ahead."""

import itertools
import threading
import weakref

import pytest

from gen_jax.data import batches


def test_the_next_is_made_while_the_caller_holds_the_last():
  made, numbers = threading.Semaphore(0), itertools.count()

  def make():
    number = next(numbers)
    made.release()
    return number

  stream = batches.ahead(make)
  for expected in range(5):
    assert next(stream) == expected
    for _ in range(2 if expected == 0 else 1):
      assert made.acquire(timeout=30)  # without another call of next
  stream.close()
  assert next(numbers) == 6  # one more than was asked for, no more


def test_a_failure_waits_for_the_call_that_asks_for_it():
  numbers = iter([1, 2])

  def make():
    found = next(numbers, None)
    if found is None:
      raise ValueError("no third")
    return found

  stream = batches.ahead(make)
  assert [next(stream), next(stream)] == [1, 2]
  with pytest.raises(ValueError, match="no third"):
    next(stream)


class Made:
  """What a weak reference can follow."""


def test_what_the_caller_drops_is_gone_at_once():
  stream = batches.ahead(Made)
  for _ in range(3):
    made = weakref.ref(next(stream))
    assert made() is None
