"""Progress says how much is left, and only of what takes long."""

import io
import re
import sys

import nbclient
import nbformat
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


class Screen(io.StringIO):
  """A terminal's stderr."""

  def isatty(self):
    return True


def test_a_bar_on_a_terminal_and_lines_above_it_for_what_is_inside(clock, monkeypatch):
  screen = Screen()
  monkeypatch.setattr(sys, "stderr", screen)
  monkeypatch.setenv("TERM", "xterm")
  for i, _ in enumerate(progress.track(clock(1, 1), 2, "batches drawn")):
    assert list(progress.track(clock(1, 9, 1), 3, f"inner {i}")) == [1, 9, 1]
  text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
  assert "batches drawn" in text and "2/2" in text
  assert "2 of 3 inner 0, ETA 0:09" in text and "inner 0 " not in text
  assert not progress._live
  assert list(progress.track(iter("ab"), 2, "letters")) == ["a", "b"]


def test_a_notebook_shows_one_line_that_changes():
  """In a real kernel, without widgets; what stays is the last state."""
  code = (
    "import time; from gen_jax.system import progress\n"
    "for i in progress.track(iter(range(3)), 3, 'images encoded'): time.sleep(0.25)"
  )
  notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
  nbclient.NotebookClient(notebook, timeout=60).execute()
  (output,) = notebook.cells[0].outputs
  assert re.fullmatch("3 of 3 images encoded, [01] s", output["data"]["text/plain"])


def test_what_is_quick_is_silent(clock, capsys):
  assert len(list(progress.lines(clock(1, 1, 1), 3, "images"))) == 3
  assert capsys.readouterr() == ("", "")
