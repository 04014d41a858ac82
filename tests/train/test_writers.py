"""The terminal: a bar that fits, evaluations above it; else plain lines."""

import io
import re
import sys

import numpy as np

from gen_jax.train import writers

ROW = {"loss": 1.25, "grad_norm": 0.5, "learning_rate": 1e-3, "tokens_per_sec": 5700.0}


class Screen(io.StringIO):
  """What a terminal of 80 columns would show."""

  def isatty(self):
    return True


def test_the_bar_fits_into_80_columns(monkeypatch):
  screen = Screen()
  monkeypatch.setattr(sys, "stderr", screen)
  monkeypatch.setenv("COLUMNS", "80")
  monkeypatch.setenv("TERM", "xterm")
  terminal = writers.Terminal(0, 2000, "quickstart")
  terminal.write(500, ROW)
  terminal.write(500, {"validation/loss": 1.5})
  terminal.close()
  text = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())  # colours
  lines = re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]", text)
  bar = max((line for line in lines if "loss 1.2500" in line), key=len)
  assert len(bar) <= 80 and "500/2000" in bar
  assert "5,700 tokens/s" in bar and "ETA" in bar
  assert "step 500  validation/loss 1.5" in lines


def test_plain_lines(capsys):
  terminal = writers.Terminal(0, 2000, "quickstart")
  terminal.write(500, ROW)
  assert capsys.readouterr().out.startswith(
    "step 500/2000  loss 1.25  grad_norm 0.5  learning_rate 0.001  tokens_per_sec 5,700"
  )


def test_pictures_go_into_files_and_numbers_elsewhere(tmp_path, capsys):
  """A run that resumes at step 20 draws what came after it again."""
  saved = {}

  def save(path, images):
    saved[path.name] = images.shape
    path.write_bytes(b"")

  values = {"loss": 1.0, "samples": np.zeros((2, 3, 8, 8, 1), np.uint8)}
  sinks = [writers.Pictures(tmp_path, 0, save), writers.JsonLines(tmp_path, 0)]
  sinks.append(writers.Terminal(0, 40, "run"))
  for step in (20, 40):
    for sink in sinks:
      sink.write(step, values)
  for sink in sinks:
    sink.close()
  assert writers.read_metrics(tmp_path)[1] == {"step": 40, "loss": 1.0}
  assert "samples" not in capsys.readouterr().out
  assert saved["samples_00000020.png"] == (2, 3, 8, 8, 1)
  assert [step for _, step in writers.sheets(tmp_path)] == [20, 40]
  writers.Pictures(tmp_path, 20, save)
  assert [path.name for path, _ in writers.sheets(tmp_path)] == ["samples_00000020.png"]
