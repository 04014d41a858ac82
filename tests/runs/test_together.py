"""Runs of a group end as runs alone: by map to the bit, by vmap to rounding."""

import json
import pathlib
import re
import threading

import jax
import numpy as np
import pytest

from gen_jax import build, ranges, sharding, tree, types
from gen_jax import experiment as experiments
from gen_jax.build import config_files
from gen_jax.build import overrides as overriding
from gen_jax.runs import bill, programs, together, training
from gen_jax.runs import run as runs
from gen_jax.system import files
from gen_jax.train import checkpoint, writers

ROOT = pathlib.Path(__file__).parents[2]
NUM_STEPS = 6
BASE = {
  "train.num_steps": NUM_STEPS,
  "train.save_every": 4,
  "evaluators.validation.every": 3,
  "task.model.dropout": 0.1,
}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  monkeypatch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])


def config(overrides=(), spec="lm/pydoc.py:smoke"):
  base = config_files.load(f"{ROOT}/configs/{spec}")
  return build.resolved(overriding.apply(base, {**BASE, **dict(overrides)}.items()))


def group(home, configs, mode):
  """{folder's name: outcome}, what was said."""
  said = []
  arms = [together.Arm(c, home / f"{i}") for i, c in enumerate(configs)]
  ended = together.run(arms, mode, said.append)
  return {int(arm.directory.name): outcome for arm, outcome in ended}, said


def alone(home, config):
  training.train(config, home, training.Alone())


def state(home, which="latest"):
  return tree.flatten(runs.open_run(home).state(which))


def rows(home):
  """Metrics but for times and rates."""
  return [
    {k: v for k, v in row.items() if not re.search("_per_sec|wait|mfu", k)}
    for row in writers.read_metrics(home)
  ]


WARMUP = "optimizer.learning_rate.warmup_steps"
ARMS = (
  {},
  {"optimizer.learning_rate.peak": 1e-2, "optimizer.clip_norm": 0.3},
  {"seed": 1, "task.model.dropout": 0.3},
)


@pytest.mark.parametrize("mode", ["map", pytest.param("turn", marks=pytest.mark.long)])
def test_arms_train_to_the_bit_as_alone(mode, tmp_path):
  configs = [config(arm) for arm in ARMS]
  outcomes, _ = group(tmp_path / "group", configs, mode)
  assert [outcomes[i].status for i in range(3)] == ["finished"] * 3
  assert {o.mode for o in outcomes.values()} == {mode}
  for i in range(3):  # of the one device, each has its share while all are at work
    (start,) = files.read_sealed(tmp_path / f"group/{i}" / bill.NAME)["starts"]
    assert start["chips"] == {"map": 1 / 3, "turn": 1}[mode]
  for i in (1, 2):
    home = tmp_path / f"alone_{i}"
    alone(home, configs[i])
    found = state(tmp_path / "group" / f"{i}")
    for path, wanted in state(home).items():
      np.testing.assert_array_equal(found[path], wanted, err_msg=path)
    assert rows(tmp_path / "group" / f"{i}") == rows(home)
    texts = [(h / "config.json").read_text() for h in (home, tmp_path / f"group/{i}")]
    assert json.loads(texts[0]) == json.loads(texts[1])


def changes(base):
  """One override for each number that programs take: another value of it."""
  found = programs.config_numbers(base)
  for key in build.keys(base):
    head = key.path.split(".")[0]
    if key.path in found and head in ("task", "optimizer", "train") and key.value:
      if ranges.is_argument(key.value, key.hint):
        value = found[key.path]
        yield {key.path: 2 * value if isinstance(value, int) else 0.75 * value}


def test_no_number_that_a_group_shares_changes_how_a_run_starts():
  """The start is compiled once for all; of what differs seeds alone are arguments."""
  base = config({"task.model.position": "learned", "task.z_loss": 0.1})
  arms = [arm for arm in changes(base) if next(iter(arm)).startswith("task.")]
  starts = []
  for arm in ({}, *arms):
    made = experiments.make(build.resolved(overriding.apply(base, arm.items())), None)
    init = jax.jit(made.learner.init)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), made.batch())
    starts.append(tree.sha256(sharding.unbox(init(jax.random.key(0), zeros))))
  assert len(arms) > 1 and set(starts) == {starts[0]}, arms
  key = "task.model.init_std"
  wide = config({key: 0.06}), config({key: 0.02})
  assert len({together.structure(one) for one in wide}) == 2


@pytest.mark.long
def test_every_number_in_turn(tmp_path):
  """After 50 steps: map is turn's to the bit, vmap within 1e-5."""
  base = config(
    {
      "train.num_steps": 50,
      "train.save_every": 50,
      "evaluators.validation.every": 50,
      "train.ema_decay": 0.9,
      "task.z_loss": 0.1,
      "optimizer.clip_norm": 0.5,
      "optimizer.learning_rate.warmup_steps": 10,
      "optimizer.learning_rate.peak": 1e-3,
    }
  )
  arms = [{}, *changes(base)]
  arms = [arm for arm in arms if "train.num_steps" not in arm]
  configs = [build.resolved(overriding.apply(base, arm.items())) for arm in arms]
  for mode in ("turn", "map", "vmap"):
    outcomes, _ = group(tmp_path / mode, configs, mode)
    assert {o.status for o in outcomes.values()} == {"finished"}
  assert len(arms) > 10
  for i, arm in enumerate(arms):
    one, two, three = (state(tmp_path / m / f"{i}") for m in ("turn", "map", "vmap"))
    for path, wanted in one.items():
      np.testing.assert_array_equal(two[path], wanted, err_msg=f"{arm} {path}")
      np.testing.assert_allclose(
        three[path], wanted, rtol=1e-5, atol=1e-5, err_msg=f"{arm} {path}"
      )


@pytest.mark.long
def test_arms_that_end_leave_and_the_others_go_on(tmp_path):
  """One diverges, one stops by patience, two go on in a program of half the size."""
  patient = {
    "train.num_steps": 12,
    "train.patience": 1,
    "evaluators.validation.every": 5,
  }
  arms = [
    {**patient, "optimizer.learning_rate.peak": 1e-2},
    {**patient, "optimizer.learning_rate.peak": 1e38},
    {**patient, "optimizer.learning_rate.peak": 3e-3},
  ]
  configs = [config(arm) for arm in arms]
  outcomes, _ = group(tmp_path, configs, "map")
  assert outcomes[1].status == "diverged" and "not applied" in outcomes[1].line
  assert [outcomes[i].status for i in (0, 2)] == ["finished"] * 2
  alone(tmp_path / "alone", configs[0])
  for path, wanted in state(tmp_path / "alone").items():
    np.testing.assert_array_equal(state(tmp_path / "0")[path], wanted, err_msg=path)


@pytest.mark.long
def test_a_group_resumes_where_each_arm_stands(tmp_path):
  configs = [config(arm) for arm in ARMS[:2]]
  short = [
    build.resolved(overriding.apply(c, [("train.num_steps", 4)])) for c in configs
  ]
  alone(tmp_path / "0", short[0])
  outcomes, _ = group(tmp_path, configs, "map")
  assert {o.status for o in outcomes.values()} == {"finished"}
  assert state(tmp_path / "0")["step"] == state(tmp_path / "1")["step"] == NUM_STEPS


def test_what_changes_the_program_is_apart(tmp_path):
  """A warm-up that outlasts the run is another structure: nothing decays."""
  configs = [config({WARMUP: 3}), config({WARMUP: 50}), config({WARMUP: 2})]
  outcomes, _ = group(tmp_path, configs, "map")
  statuses = [outcomes[i].status for i in range(3)]
  assert statuses == ["finished", "apart", "finished"]


def test_what_is_switched_off_is_no_group_with_what_is_on():
  off, on = (config({"task.model.dropout": rate}) for rate in (0.0, 0.1))
  assert together.structure(off) != together.structure(on)
  assert together.structure(on) == together.structure(config({**ARMS[1], "seed": 3}))


def test_runs_of_several_structures_are_no_group(tmp_path):
  with pytest.raises(ValueError, match="differ in more than"):
    group(tmp_path, [config(), config({"task.model.width": 64})], "map")


def test_runs_wait_for_the_disk_at_once(tmp_path, monkeypatch):
  """Each waits until both do: one after the other would wait for ever."""
  both = threading.Barrier(2)

  def wait(manager):
    both.wait(timeout=60)
    checkpoint.wait(manager)

  monkeypatch.setattr(training.Solo, "wait", staticmethod(wait))
  outcomes, _ = group(tmp_path, [config(), config({"seed": 1})], "map")
  assert {o.status for o in outcomes.values()} == {"finished"}
  assert not both.broken


def test_a_step_is_that_of_a_run_that_differs_in_numbers_alone(tmp_path):
  def made(overrides):
    return experiments.make(config(overrides), tmp_path)

  program = programs.program(made({}), 100)
  assert program.is_of(made({"optimizer.learning_rate.peak": 1e-2, "seed": 3}))
  assert not program.is_of(made({"train.num_microbatches": 2}))
  assert not program.is_of(made({"task.model.dropout": 0.0}))


def test_what_a_step_measured_is_fetched_when_it_is_asked_for(tmp_path):
  """Metrics of several runs, each its own; not before the step that follows is sent."""
  mean = types.Mean(jax.numpy.arange(3.0), jax.numpy.full(3, 2.0))
  measured = programs._Measured({"loss": mean})
  shares = [measured.of(place) for place in range(3)]
  jax.block_until_ready(shares)
  assert all(x.is_ready() for x in jax.tree.leaves(shares))
  assert "values" not in vars(measured)
  assert [jax.device_get(share)["loss"].value for share in shares] == [0.0, 0.5, 1.0]


def test_one_that_cannot_begin_does_not_stop_the_others(tmp_path):
  (tmp_path / "1").write_text("a file where the folder would be")
  outcomes, _ = group(tmp_path, [config(), config({"seed": 1})], "turn")
  assert outcomes[0].status == "finished" and outcomes[1].status == "failed"
  assert str(tmp_path / "1") in outcomes[1].line


def test_the_mode_is_measured_and_said(tmp_path):
  outcomes, said = group(tmp_path, [config(), config({"seed": 1})], None)
  assert {o.mode for o in outcomes.values()} <= set(together.MODES)
  assert "ms by vmap" in said[0]


@pytest.mark.long
def test_a_convolution_goes_in_turn_on_a_cpu(tmp_path):
  small = {"task.network.multipliers": (1,), "task.network.width": 8}
  some = {k: v for k, v in BASE.items() if k.startswith("train")} | small
  base = config_files.load(f"{ROOT}/configs/diffusion/digits.py:smoke")
  configs = [
    build.resolved(overriding.apply(base, {**some, "seed": i}.items())) for i in (0, 1)
  ]
  outcomes, said = group(tmp_path, configs, None)
  assert {(o.status, o.mode) for o in outcomes.values()} == {("finished", "turn")}
  assert "convolutions" in said[0]
