"""What a signal does to the main thread; whole processes are in tests/e2e."""

import os
import signal

import pytest

from gen_jax.system import signals


def ask():
  os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def handling():
  with signals.handling():
    yield


def test_raised_at_once_where_nothing_may_be_lost():
  with pytest.raises(signals.Interrupted):
    ask()
  assert signals.was_raised()


@pytest.mark.parametrize("error", [None, ValueError])
def test_deferred_to_the_end_of_the_outermost_call(error):
  """Whatever the call makes of it: a callback's error would hide the signal."""
  done = []
  with pytest.raises(signals.Interrupted), signals.deferred():
    with signals.deferred():
      ask()
      done.append("inner")
    done.append("outer")
    if error:
      raise error
  assert done == ["inner", "outer"]


def test_held_is_only_recorded():
  with signals.held():
    with signals.deferred():
      ask()
    assert signals.asked() == signal.SIGTERM
  assert not signals.was_raised()
