"""The terminal: a bar that fits, evaluations above it; else plain lines."""

import io
import json
import re
import struct
import sys
import time

import numpy as np
import pytest
from PIL import Image

from gen_jax.inference import sheets
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


def test_images_go_into_files_and_numbers_elsewhere(tmp_path, capsys):
  """A run that resumes at step 20 draws what came after it again."""
  saved = {}

  def save(path, images):
    saved[path.name] = images.shape
    path.write_bytes(b"")

  values = {"loss": 1.0, "samples": np.zeros((2, 3, 8, 8, 1), np.uint8), "words": "é"}
  sinks = [writers.SampleFiles(tmp_path, 0, save), writers.JsonLines(tmp_path, 0)]
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
  writers.SampleFiles(tmp_path, 20, save)
  assert [path.name for path, _ in writers.sheets(tmp_path)] == ["samples_00000020.png"]
  ((path, step),) = writers.sheets(tmp_path, "txt")
  assert (path.name, step, path.read_text()) == ("words_00000020.txt", 20, "é")


def events(workdir):
  """(tag, step, value) of TensorBoard's files: TFRecords of protocol buffers."""
  from tensorboardX.proto import event_pb2

  for file in sorted((workdir / "tensorboard").iterdir()):
    content, at = file.read_bytes(), 0
    while at < len(content):
      (size,) = struct.unpack_from("<Q", content, at)
      event = event_pb2.Event.FromString(content[at + 12 : at + 12 + size])
      at += size + 16
      for value in event.summary.value:
        yield value.tag, event.step, value


def test_tensorboard_shows_images_and_text(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 1), np.uint8)
  sink = writers.TensorBoard(tmp_path, -1, sheets.in_colour)
  sink.write(20, {"loss": 1.5, "samples": images, "answers": "a | b\n````"})
  sink.close()
  found = {tag: (step, value) for tag, step, value in events(tmp_path)}
  assert {step for step, _ in found.values()} == {20}
  assert found["loss"][1].simple_value == 1.5
  (text,) = found["answers/text_summary"][1].tensor.string_val
  assert text.decode() == "`````\na | b\n````\n`````"
  picture = Image.open(io.BytesIO(found["samples"][1].image.encoded_image_string))
  sheets.save_sheet(tmp_path / "sheet.png", images)
  want = Image.open(tmp_path / "sheet.png").convert("RGB")
  assert np.array_equal(np.asarray(picture), np.asarray(want))


DAMAGES = {
  "torn": b'{"step": 3, "lo',
  "no step": b'{"loss": 1.0}',
  "step is null": b'{"step": null, "loss": 1.0}',
  "step is text": b'{"step": "3"}',
  "step is a fraction": b'{"step": 3.5}',
  "step is true": b'{"step": true}',
  "negative": b'{"step": -3}',
  "a value is text": b'{"step": 3, "loss": "x"}',
  "a list": b"[1, 2]",
  "null": b"null",
  "zeros": bytes(40),
  "no text": b'{"step": 3, "\xff": 1}',
  "deep": b"[" * 100_000,
  "many digits": b'{"step": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("line", DAMAGES.values(), ids=DAMAGES)
def test_damaged_rows_are_left_out_and_said(line, tmp_path, capsys):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(b'{"step": 1, "a": 1.0}\r\n' + line + b'\n\n{"step": 2, "a": 2.0}\n')
  want = [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}]
  assert writers.read_metrics(tmp_path) == want
  assert f"1 damaged lines of metrics; the first: {path}:2" in capsys.readouterr().err
  writers.JsonLines(tmp_path, 2).close()  # says it again, and mends the file
  assert "1 damaged" in capsys.readouterr().err
  assert writers.read_metrics(tmp_path) == want and not capsys.readouterr().err


def test_what_is_not_finite_is_null(tmp_path):
  """Every line is JSON, which has no NaN; readers find NaN."""
  sink = writers.JsonLines(tmp_path, -1)
  sink.write(3, {"loss": float("nan"), "grad_norm": float("inf"), "rate": 0.5})
  sink.close()
  writers.JsonLines(tmp_path, 3).close()  # keeps it as it is
  line = (tmp_path / "metrics.jsonl").read_text()
  row = json.loads(line, parse_constant=lambda name: pytest.fail(name))
  assert type(row.pop("crc32")) is int
  assert -1e-3 < time.time() - row.pop("time") < 60  # in milliseconds
  assert row == {"step": 3, "loss": None, "grad_norm": None, "rate": 0.5}
  (row,) = writers.read_metrics(tmp_path)
  assert np.isnan([row.pop("loss"), row.pop("grad_norm")]).all()
  assert row == {"step": 3, "rate": 0.5}


def test_no_bit_of_a_row_may_differ(tmp_path, capsys):
  """What a flipped bit leaves is a row that is left out, or the same rows."""
  sink = writers.JsonLines(tmp_path, -1)
  for step in (1, 2):
    sink.write(step, {"loss": 1.0 / (step + 2), "rate": 5e-324})
  sink.close()
  path = tmp_path / "metrics.jsonl"
  content, want = path.read_bytes(), writers.read_metrics(tmp_path)
  for at in range(8 * len(content)):
    flipped = bytearray(content)
    flipped[at // 8] ^= 1 << at % 8
    path.write_bytes(flipped)
    found = writers.read_metrics(tmp_path)
    said = "damaged lines" in capsys.readouterr().err
    assert found == want if not said else all(row in want for row in found)


@pytest.mark.parametrize("last_step, kept", [(-1, []), (0, [0]), (2, [0, 2])])
def test_rows_written_again_are_dropped_first(tmp_path, last_step, kept):
  """Killed between its first evaluation and checkpoint 0, a run evaluates again."""
  sink = writers.JsonLines(tmp_path, -1)
  for step in (0, 2, 4):
    sink.write(step, {"loss": 1.0})
  sink.close()
  writers.JsonLines(tmp_path, last_step).close()
  assert [row["step"] for row in writers.read_metrics(tmp_path)] == kept


def test_a_row_that_was_doubled_counts_once(tmp_path):
  rows = [{"step": 0, "a": 1.0}, {"step": 0, "b": 2.0}, {"step": 0, "a": 1.0}]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  assert writers.read_metrics(tmp_path) == rows[1:]
