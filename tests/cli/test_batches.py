"""The batch of a training step: shown by inspect, named when a step is not finite."""

import json
import re

import numpy as np
from PIL import Image

from gen_jax import experiment as experiments
from gen_jax.data import batches
from gen_jax.runs import workdir

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
