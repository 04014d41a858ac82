"""A finished run can be made longer, and is then what it would have been at once."""

import json
import shutil

import pytest

from gen_jax.train import optim

pytestmark = pytest.mark.usefixtures("one_device")
TRAIN = (
  *("train", "--config", "configs/lm/pydoc.py:smoke"),
  *("--config.train.health_check=false", "--config.train.log_every=1"),
)


@pytest.fixture
def train(call):
  def run(workdir, *changes):
    outcome = call(*TRAIN, "--workdir", workdir, *(f"--config.{c}" for c in changes))
    assert outcome.code == 0, outcome.err
    return outcome.out

  return run


@pytest.fixture
def hashes(call):
  def run(workdir):
    outcome = call("inspect", "--workdir", workdir, "--json")
    return json.loads(outcome.out.splitlines()[-1])["sha256"]

  return run


def test_a_lengthened_run_is_the_longer_run(train, hashes, refuse, tmp_path):
  """Bit for bit with a constant learning rate; else the schedule is the longer run's.

  The first end, 3, is no step at which an evaluation was due.
  """
  constant = ("optimizer.learning_rate=constant", "optimizer.learning_rate.peak=0.01")
  once, twice = tmp_path / "once", tmp_path / "twice"
  train(once, "train.num_steps=5", *constant)
  assert "finished at step 3" in train(twice, "train.num_steps=3", *constant)
  at_three = tmp_path / "three"
  shutil.copytree(twice, at_three)
  out = train(twice, "train.num_steps=5", *constant)
  assert "5 steps in place of 3: from step 3 on the learning rate is" in out
  assert "from step 3 of 5" in out and "finished at step 5" in out
  assert hashes(twice) == hashes(once) != hashes(at_three)

  rows = [json.loads(line) for line in (twice / "metrics.jsonl").open()]
  kinds = [(row["step"], "loss" in row) for row in rows]
  assert len(kinds) == len(set(kinds)) and kinds == sorted(kinds, key=lambda k: k[0])
  assert [step for step, is_training in kinds if is_training] == [1, 2, 3, 4, 5]

  kept = {name: (twice / name).read_bytes() for name in ("config.json", "run.json")}
  assert json.loads(kept["config.json"])["train"]["num_steps"] == 5
  history = json.loads(kept["run.json"])["history"]
  assert history == [{"step": 3, "before": {"train.num_steps": 3}}]
  shorter = [f"--config.{c}" for c in ("train.num_steps=4", *constant)]
  says = ["is at step 5, beyond the 4", "give at least 5"]
  refuse(*TRAIN, "--workdir", twice, *shorter, says=says)
  assert {name: (twice / name).read_bytes() for name in kept} == kept
  assert "in place of" not in train(twice, "train.num_steps=5", *constant)
  assert json.loads((twice / "run.json").read_text())["history"] == history


@pytest.mark.long
def test_a_run_that_stops_on_its_way_is_the_whole_run(call, train, hashes, tmp_path):
  """Bit for bit with a schedule that depends on the length: that is the whole one's."""
  cosine = ("optimizer.learning_rate=cosine", "optimizer.learning_rate.peak=0.01")
  words = ("train.num_steps=5", *cosine)
  flags = [f"--config.{word}" for word in words]
  once, parts = tmp_path / "once", tmp_path / "parts"
  train(once, *words)
  for until in (2, 2, 3):  # the second time there is nothing to do
    outcome = call(*TRAIN, "--workdir", parts, "--until", until, *flags, "--json")
    assert outcome.code == 0 and f"stopped at step {until}" in outcome.out, outcome
    result = json.loads(outcome.out.splitlines()[-1])
    assert result["reason"] == "until" and result["step"] == until
    rows = [json.loads(line) for line in (parts / "metrics.jsonl").open()]
    (last,) = [r for r in rows if r["step"] == until and "validation/loss" in r]
    assert result["validation/loss"] == last["validation/loss"]
  assert "in place of" not in (out := train(parts, *words)) and "finished at" in out
  assert hashes(parts) == hashes(once)


@pytest.mark.parametrize("until", ["0", "-1"])
def test_a_stop_before_the_first_step_is_refused(refuse, tmp_path, until):
  words = (*TRAIN, "--workdir", tmp_path / "run", f"--until={until}")
  refuse(*words, says=[f"--until {until} must be at least 1"])
  assert not (tmp_path / "run").exists()


def test_the_schedule_is_that_of_the_longer_run_from_there_on(train, tmp_path):
  cosine = ("optimizer.learning_rate=cosine", "optimizer.learning_rate.peak=0.01")
  train(tmp_path, "train.num_steps=2", *cosine)
  train(tmp_path, "train.num_steps=4", *cosine)
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
  rates = {row["step"]: row["learning_rate"] for row in rows if "learning_rate" in row}
  short, long = (optim.cosine(0.01, num_steps) for num_steps in (2, 4))
  expected = [short(0), short(1), long(2), long(3)]
  assert [rates[i] for i in (1, 2, 3, 4)] == pytest.approx(list(map(float, expected)))
