"""Progress says how much is left, and only of what takes long."""

import pytest

from gen_jax.system import progress


@pytest.fixture
def clock(monkeypatch):
  """A clock that each item moves by its own value, in seconds."""
  now = [0.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

  def items(*secs):
    for value in secs:
      now[0] += value
      yield value

  return items


def test_the_first_item_compiles_and_does_not_count(clock, capsys):
  assert list(progress.track(clock(100, 2, 2, 60, 2, 2), 16, "images", 10)) == [
    *(100, 2, 2, 60, 2, 2)
  ]
  lines = capsys.readouterr().err.splitlines()
  # After the second item, 2 s each: four are left. The next line comes 30 s later:
  # three took 64 s, two are left. The last says nothing.
  assert lines == ["12 of 16 images, ETA 0:08", "14 of 16 images, ETA 0:42"]


def test_what_is_quick_is_silent(clock, capsys):
  assert len(list(progress.lines(clock(1, 1, 1), 3, "images"))) == 3
  assert capsys.readouterr() == ("", "")
