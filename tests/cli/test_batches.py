"""The batch of a training step: shown by inspect, named when a step is not finite."""

import functools
import json
import re

import numpy as np
from PIL import Image

from gen_jax import experiment as experiments
from gen_jax.data import batches, cache, pipeline, rows, tokenizers
from gen_jax.runs import first_rows, workdir

TEXT = "configs/lm/pydoc.py:smoke"


def shown(call, path, step):
  outcome = call("inspect", "--json", "--workdir", path, "--step", step)
  assert outcome.code == 0, outcome
  return outcome.out, json.loads(outcome.out.splitlines()[-1])


def test_inspect_shows_what_a_step_learns_from(call, text_workdir):
  """Every row with the text that the step's inputs say, without any checkpoint."""
  (text_workdir / "checkpoints").rename(text_workdir / "elsewhere")
  experiment = experiments.make(workdir.read_config(text_workdir), text_workdir)
  batch = experiment.pipeline("train").batch(7)
  out, found = shown(call, text_workdir, 7)
  assert found["sheet"] is None and len(found["examples"]) == len(batch["inputs"])
  for row, ids in zip(found["examples"], batch["inputs"], strict=True):
    assert row["text"] == experiment.tokenizer.decode(ids.tolist())
    assert f"example {row['index']} " in out
  assert shown(call, text_workdir, 8)[1]["examples"] != found["examples"]


def test_images_come_on_a_sheet_with_their_captions(call, digits_workdir):
  _, found = shown(call, digits_workdir, 2)
  experiment = experiments.make(workdir.read_config(digits_workdir), digits_workdir)
  examples = experiment.pipeline("train")
  for row in found["examples"]:
    assert row["text"].startswith(examples.examples[row["index"]]["caption"])
    assert row["range"]["image"] == [-1.0, 1.0]
  assert Image.open(found["sheet"]).height > 64
  batch = examples.batch(2)
  sheet = batches.sheet(batch)
  want = ((batch["image"] + 1.0) * 127.5).round()
  assert np.array_equal(sheet.reshape(-1, *sheet.shape[2:])[: len(want)], want)


BYTES = tokenizers.plain_bytes()


def row(pieces, length):
  return pipeline.packed_row([pipeline.Piece(*piece) for piece in pieces], length)


def test_what_has_no_loss_is_marked():
  """A chat and a document in a row: the answer, and all but the first token, count."""
  chat = [*b"Q: A\n", 256], [False, False, False, True, True, False]
  found = batches.marked(row([chat, ([*b"xyz"], None)], 9), BYTES)
  assert found.split("\n") == [
    "⟦Q│:│ ⟧│A│\\n⟦<|endoftext|>⟧",
    "⟦x⟧│y│z",
    "(2 of 9 places are padding)",
  ]
  assert batches.marked(row([([*"é".encode()], None)], 1), BYTES) == "⟦\\xc3⟧│\\xa9"


def test_documents_of_a_window_are_lines_whether_they_share_marks_or_not():
  ids, starts = np.array([*b"ab", 256, *b"cd"]), np.array([0, 3])
  window = cache.Tokens(ids, starts)
  for shared, first in (
    (False, "⟦a⟧│b│<|endoftext|>"),
    (True, "⟦a⟧│b│<|endoftext|>│c"),
  ):
    how = functools.partial(rows.packed, shared_marks=shared)
    features = rows.one(how, window, 4, np.random.default_rng(0))
    assert batches.marked(features, BYTES).split("\n") == [first, "⟦c⟧│d"]
  plain = rows.one(rows.windows, cache.Tokens(ids, starts), 6, None)
  want = "⟦a⟧│b│<|endoftext|>│c│d\n(2 of 6 places are padding)"
  assert batches.marked(plain, BYTES) == want


def test_training_shows_its_first_rows(call, tmp_path):
  """Before the first step, once; the file has what the first steps learn from."""
  path, small = tmp_path / "run", {"num_layers": 1, "width": 8, "num_heads": 2}.items()
  words = ["train", "--config", TEXT, "--workdir", path]
  words += [f"--config.task.model.{key}={value}" for key, value in small]
  outcome = call(*words, "--config.train.num_steps=1")
  assert outcome.code == 0, outcome
  said, step = (outcome.out.index(w) for w in ("as the model sees them", "step 0/"))
  assert said < step
  experiment = experiments.make(workdir.read_config(path), path)
  batch = experiment.pipeline("train").batch(0)
  shown = (path / "samples/first_rows.txt").read_text()
  for i in range(4):
    want = {name: values[i] for name, values in batch.items()}
    assert f"row {i + 1}\n{batches.marked(want, experiment.tokenizer)}\n" in shown
  again = call(*words, "--config.train.num_steps=2")  # resumed
  assert again.code == 0 and "as the model sees" not in again.out


def test_first_rows_of_images_are_a_sheet_with_captions(digits_workdir):
  experiment = experiments.make(workdir.read_config(digits_workdir), digits_workdir)
  examples = experiment.pipeline("train")
  lines = first_rows.show(experiment, examples, digits_workdir)
  caption = examples.examples[examples.indices(0)[0]]["caption"]
  assert repr(caption) in lines[1] and "image [8, 8, 1] from -1 to 1" in lines[1]
  page = np.asarray(Image.open(digits_workdir / "samples/first_rows.png").convert("L"))
  corner = page[20:180, 20:180][10::20, 10::20]  # 160 pixels, below a white line
  want = (examples.batch(0)["image"][0, ..., 0] + 1.0) * 127.5
  assert np.array_equal(corner, want.round())
  assert (page[182:200] < 128).any()  # words


def test_the_row_that_is_not_finite_is_named_first():
  ranges = [[-1.0, 1.0], [-1.0, 1e9], [float("nan"), float("nan")], [-1.0, 1.0]]
  rows = [{"index": i, "range": {"latent": r}} for i, r in enumerate(ranges)]
  assert batches.oddest(rows)["index"] == 2
  assert batches.oddest(rows[:2])["index"] == 1
  assert batches.oddest([{"index": 5, "range": {}}])["index"] == 5


def test_a_step_that_is_not_finite_comes_again_and_stops_again(call, refuse, tmp_path):
  """In a folder with brackets: the same step, batch and line, and nothing set aside."""
  path = tmp_path / "lr[1e30]"
  small = {"num_layers": 1, "width": 8, "num_heads": 2}.items()
  words = ("train", "--config", TEXT, "--workdir", path)
  words += tuple(f"--config.task.model.{k}={v}" for k, v in small)
  words += ("--config.optimizer.learning_rate.peak=1e30",)
  words += ("--config.train.save_every=1", "--config.train.health_check=False")
  words += ("--config.train.num_steps=9",)
  first, second = call(*words), call(*words)
  assert first.code == second.code == 65
  line = first.err.splitlines()[-1]
  assert second.err.splitlines()[-1] == line
  step = int(re.search(r"at step (\d+)", line)[1])
  folders = sorted(p.name for p in (path / "checkpoints").iterdir())
  assert str(step) in folders and all(name.isdecimal() for name in folders)
  assert max(map(int, folders)) == step
  _, found = shown(call, path, step)
  indices = ", ".join(str(row["index"]) for row in found["examples"][:8])
  assert f"the examples {indices}" in line and f"--step {step}`" in line
  refuse("inspect", "--workdir", path, "--step", -1, says=["--step -1 must be"])

  def no_constant(word):
    raise AssertionError(word)

  for row in (path / "metrics.jsonl").read_text().splitlines():
    json.loads(row, parse_constant=no_constant)
