"""The loop's order of operations, its ways to stop, and its checkpoints."""

import dataclasses
import itertools
import json
import math
import os
import signal
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import tree, types
from gen_jax.train import checkpoint, loop, writers
from gen_jax.train import state as states


def fresh():
  x = {"w": jnp.zeros(2)}
  return states.TrainState(jnp.int32(0), x, None, (), jnp.zeros(2, jnp.uint32))


class Spy:
  """Everything the loop is given, writing down what happens."""

  def __init__(self, values=(), every=2, bad_at=None, signal_at=None, name="loss"):
    self.events, self.every, self.name = [], every, f"validation/{name}"
    self.values = iter(values or itertools.count(100, -1))
    self.bad_at, self.signal_at = bad_at, signal_at

  def __call__(self, weights, frozen):
    self.events.append("evaluate")
    yield self.name, float(next(self.values))

  def stream(self, start):
    for i in itertools.count(start):
      self.events.append(f"batch {i}")
      yield i

  def step(self, state, frozen, batch, numbers):
    self.events.append(f"step {batch}")
    if batch == self.signal_at:
      os.kill(os.getpid(), signal.SIGINT)
    value = np.nan if batch == self.bad_at else 1.0
    mean = types.Mean(np.float32(value), np.float32(1.0))
    taken = state.step + 1
    if batch == self.bad_at or state.step < 0:  # as `steps.make_step` says it
      taken = jnp.minimum(state.step, ~state.step)
    return dataclasses.replace(state, step=taken), {"loss": mean, "grad_norm": mean}

  def write(self, step, values):
    kind = "validation" if self.name in values else "training"
    self.events.append(f"write {kind} {step}")

  def close(self):
    pass

  def run(self, manager, num_steps=4, state=None, progress=None, **config):
    config = loop.Config(**{"num_steps": num_steps, "log_every": 1, **config})
    return loop.run(
      state or fresh(),
      progress=progress or checkpoint.Progress(),
      resumed=state is not None,
      step=self.step,
      numbers={},
      frozen={},
      stream=self.stream,
      evals=[self],
      manager=manager,
      sinks=[self],
      config=config,
      num_steps=num_steps,
      learning_rate=lambda step: 0.1,
      per_step={"tokens_per_sec": 3},
    )


@pytest.fixture
def manager(tmp_path, monkeypatch):
  with checkpoint.open_manager(tmp_path) as manager:
    yield manager


@pytest.fixture
def saves(monkeypatch):
  """Replaces saving by a note in the spy's events."""

  def install(spy):
    def save(manager, step, state, progress, value=None):
      spy.events.append(f"save {step}")

    monkeypatch.setattr(checkpoint, "save", save)
    return spy

  return install


def test_no_batch_is_held_while_the_next_is_asked_for(manager, saves):
  # Freeing it takes Python's lock from the loop, and readers run for milliseconds.
  class Batch(float):
    pass

  class Counting(Spy):
    def stream(self, start):
      held = []
      for i in itertools.count(start):
        assert not any(batch() for batch in held)
        yield self.made(i, held)

    def made(self, i, held):
      batch = Batch(i)
      held.append(weakref.ref(batch))
      return batch

  saves(Counting()).run(manager)


def test_order_of_operations(manager, saves):
  spy = saves(Spy())
  result = spy.run(manager, save_every=3)
  assert result.reason == "finished"
  assert spy.events == [
    "evaluate", "write validation 0", "save 0",
    "batch 0", "step 0",
    "batch 1", "step 1", "write training 1",
    "evaluate", "write validation 2", "save 2",
    "batch 2", "step 2", "write training 2",
    "save 3",
    "batch 3", "step 3", "write training 3",
    "write training 4",
    "evaluate", "write validation 4", "save 4",
  ]  # fmt: skip


@pytest.mark.parametrize("log_every, rows", [(3, [3, 3]), (1, [None, 3, 3, 3, 3, 3])])
@pytest.mark.parametrize("is_async", [False, True])
def test_speed_is_that_of_training_alone(
  manager, monkeypatch, log_every, rows, is_async
):
  """Steps take a second, the first one, evaluations and checkpoints far more."""
  now, speeds, busy_until = [0.0], [], [0.0]

  def wait(x):
    now[0] = max(now[0], busy_until[0] if is_async else 0.0)
    return x

  def fetch(metrics):
    at = metrics["loss"].count
    now[0] = max(now[0], float(at) if is_async else 0.0)
    return metrics

  monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
  monkeypatch.setattr(loop.jax, "block_until_ready", wait)
  monkeypatch.setattr(loop.jax, "device_get", fetch)
  monkeypatch.setattr(loop, "_is_ready", lambda metrics: not is_async)

  class Slow(Spy):
    def __call__(self, weights, frozen):
      now[0] += 100
      return super().__call__(weights, frozen)

    def step(self, state, frozen, batch, numbers):
      now[0] += 0 if batch else 1000  # compiles
      busy_until[0] = max(now[0], busy_until[0]) + 1
      if not is_async:
        now[0] += 1
      state, metrics = super().step(state, frozen, batch, numbers)
      done = types.Mean(np.float64(busy_until[0]), np.float64(busy_until[0]))
      return state, {**metrics, "loss": done}

    def write(self, step, values):
      if "learning_rate" in values:
        speeds.append(values.get("tokens_per_sec"))

  def save(*args):
    now[0] += 10_000

  monkeypatch.setattr(checkpoint, "save", save)
  Slow().run(manager, num_steps=6, log_every=log_every, save_every=2)
  assert speeds == rows


def test_the_share_of_waiting_for_data_is_that_of_training_alone(manager, monkeypatch):
  """Batches take three seconds and steps one; evaluations and saving do not count."""
  now, shares = [0.0], []
  monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])

  class Hungry(Spy):
    def __call__(self, weights, frozen):
      now[0] += 100
      return super().__call__(weights, frozen)

    def stream(self, first):
      for batch in super().stream(first):
        now[0] += 3
        yield batch

    def step(self, state, frozen, batch, numbers):
      now[0] += 1
      return super().step(state, frozen, batch, numbers)

    def write(self, step, values):
      shares.extend(v for k, v in values.items() if k == "data_wait")

  monkeypatch.setattr(checkpoint, "save", lambda *args: None)
  Hungry().run(manager, num_steps=6, log_every=3, save_every=2)
  assert shares == [0.75, 0.75]


def test_resumed_run_does_not_evaluate_its_first_step_again(manager, saves):
  spy = saves(Spy())
  state = dataclasses.replace(fresh(), step=jnp.int32(2))
  spy.run(manager, state=state, save_every=3)
  assert spy.events[:2] == ["batch 2", "step 2"]


def test_finished_run_does_nothing(manager, saves):
  spy = saves(Spy())
  state = dataclasses.replace(fresh(), step=jnp.int32(4))
  assert spy.run(manager, state=state).reason == "finished"
  assert spy.events == []


def test_patience_counts_evaluations_without_improvement(manager, saves):
  spy = saves(Spy(values=[5, 4, 4, 4.5, 3], every=1))
  result = spy.run(manager, num_steps=9, patience=2, save_every=100)
  assert result.reason == "patience"
  assert int(result.state.step) == 3
  assert result.progress == checkpoint.Progress(4.0, 1, 2)


def test_patience_with_a_metric_that_nobody_measures_is_refused(manager, saves):
  spy = saves(Spy(every=1))
  with pytest.raises(types.InputError, match="did you mean 'validation/loss'"):
    spy.run(manager, patience=2, monitor="validation/lost")


@pytest.mark.parametrize("monitor", ["validation/lost", "valid/loss"])
def test_a_metric_that_nobody_measures_is_refused_before_the_first_step(
  manager, saves, monitor
):
  spy = saves(Spy(every=3))
  with pytest.raises(types.InputError, match="There are: validation/loss"):
    spy.run(manager, monitor=monitor)
  assert not [event for event in spy.events if event.startswith("step")]


def test_what_is_measured_at_the_end_alone_can_be_monitored(manager, saves):
  spy = saves(Spy(every=0))
  assert spy.run(manager).progress.best_step == 4


def test_the_best_accuracy_is_the_highest(manager, saves):
  spy = saves(Spy(values=[0.1, 0.3, 0.3, 0.2, 0.4], every=1, name="accuracy"))
  result = spy.run(manager, 9, patience=2, monitor="validation/accuracy")
  assert result.reason == "patience"
  assert result.progress == checkpoint.Progress(-0.3, 1, 2)


def test_a_metric_of_which_nobody_knows_the_better_side_is_refused(manager, saves):
  spy = saves(Spy(every=1, name="num"))
  with pytest.raises(types.InputError, match="whether lower or higher is better"):
    spy.run(manager, monitor="validation/num")


def test_bad_data_in_the_middle_loses_no_step(manager, saves):
  spy = saves(Spy(every=0))

  def stream(start):
    yield from range(3)
    raise types.InputError("broken image")

  spy.stream = stream
  with pytest.raises(types.InputError, match="broken image"):
    spy.run(manager, num_steps=9, save_every=100)
  assert spy.events[-1] == "save 3"


@pytest.fixture
def interruptible():
  """Ctrl-C as in a terminal: a process started in the background ignores it."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_one_signal_saves_and_stops(manager, saves):
  spy = saves(Spy(signal_at=1))
  result = spy.run(manager, num_steps=100, save_every=50)
  assert result.reason == "interrupted"
  assert "save 2" in spy.events and "batch 2" not in spy.events
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("interruptible")
def test_second_signal_stops_at_once(manager, saves):
  spy = saves(Spy(signal_at=1))
  saved_step = spy.step

  def step(state, frozen, batch, numbers):
    if batch == 1:
      os.kill(os.getpid(), signal.SIGINT)
    return saved_step(state, frozen, batch, numbers)

  spy.step = step
  with pytest.raises(KeyboardInterrupt):
    spy.run(manager, num_steps=100)
  assert "save 2" not in spy.events


@pytest.mark.parametrize(
  "every, save_every", [(0, 50), (1, 50), (0, 1), (3, 3), (2, 2)]
)
@pytest.mark.parametrize("bad_at", [0, 2, 3])
def test_a_loss_that_is_not_finite_stops_at_the_state_before_it(
  manager, saves, every, save_every, bad_at
):
  """Saved under its own number; nothing is evaluated, saved or written after it."""
  spy = saves(Spy(bad_at=bad_at, every=every))
  with pytest.raises(loop.NotFiniteError, match=f"at step {bad_at}") as caught:
    spy.run(manager, num_steps=100, save_every=save_every)
  assert caught.value.step == bad_at
  steps = {int(e.split()[-1]) for e in spy.events if e.split()[0] in ("save", "write")}
  assert max(steps, default=0) <= bad_at
  assert spy.events.count(f"save {bad_at}") == 1


@pytest.mark.parametrize("bad_at", [1, 3])
def test_weights_that_are_not_finite_are_never_saved(manager, saves, bad_at):
  """After any step, the last one as well, whose loss and gradient were finite."""
  spy = saves(Spy(every=100))
  plain = spy.step

  def step(state, frozen, batch, numbers):
    state, metrics = plain(state, frozen, batch, numbers)
    if batch == bad_at:
      state = dataclasses.replace(state, params={"w": jnp.array([0.0, np.inf])})
    return state, metrics

  spy.step = step
  with pytest.raises(states.NotFiniteError, match=f"after step {bad_at}"):
    spy.run(manager, num_steps=4, save_every=1)
  assert [e for e in spy.events if "save" in e] == [
    f"save {i}" for i in range(bad_at + 1)
  ]


def test_what_is_not_trained_is_not_the_best(manager, saves):
  """Step 0 is better than all that follow; a validation of NaN is never the best."""
  spy = saves(Spy(values=[1.0, 5.0, 4.0, math.nan, 6.0], every=1))
  result = spy.run(manager, num_steps=9, patience=2, save_every=100)
  assert result.progress == checkpoint.Progress(4.0, 2, 2)
  assert [e for e in spy.events if "save" in e] == [
    "save 0", "save 1", "save 2", "save 4"
  ]  # fmt: skip


@pytest.mark.parametrize(
  "values, best, says",
  [
    ({0: 1.0, 5: 3.0, 9: 2.0}, 9, 0),
    ({0: 1.0, 5: None, 9: None}, 9, 1),  # it stopped before its first evaluation
    ({0: 1.0, 5: math.nan, 9: None}, 9, 1),
    ({0: None}, 0, 0),  # imported
    ({4: None}, 4, 1),
  ],
)
def test_best_is_the_best_that_was_trained_or_the_latest_said_aloud(
  values, best, says, tmp_path
):
  told = []
  with checkpoint.open_manager(tmp_path, keep=9) as manager:
    for step, value in values.items():
      checkpoint.save(manager, step, fresh(), checkpoint.Progress(), value)
    manager.wait_until_finished()
    assert checkpoint.find_step(manager, "best", told.append) == best
  assert len(told) == says
  assert all(f"the latest, {best}" in line for line in told)


@pytest.mark.parametrize(
  "num_epochs, expected", [(None, 100), (2, 20), (0.5, 5), (99, 100)]
)
def test_epochs_become_steps(num_epochs, expected):
  config = loop.Config(num_steps=100, num_epochs=num_epochs)
  assert config.total_steps(examples_per_epoch=80, batch_size=8) == expected


def test_latest_and_best_checkpoints_are_kept(tmp_path):
  state = jax.tree.map(jnp.asarray, fresh())
  with checkpoint.open_manager(tmp_path, keep=2) as manager:
    for step, value in enumerate([3.0, 1.0, 2.0, 5.0, 4.0]):
      state = dataclasses.replace(
        state, step=jnp.int32(step), params={"w": jnp.full(2, value)}
      )
      checkpoint.save(manager, step, state, checkpoint.Progress(1.0, 1, 3), value)
    manager.wait_until_finished()
    assert sorted(manager.all_steps()) == [1, 3, 4]
    assert checkpoint.find_step(manager, "best") == 1
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
  )
  with checkpoint.open_manager(tmp_path, read_only=True) as manager:
    restored, progress = checkpoint.restore(manager, abstract)
    assert tree.sha256(restored) == tree.sha256(state)
    assert progress == checkpoint.Progress(1.0, 1, 3)
    best, _ = checkpoint.restore(manager, abstract, step=1)
    assert best.params["w"].tolist() == [1.0, 1.0]
    wrong = dataclasses.replace(
      abstract,
      params={"v": abstract.params["w"], "w": jax.ShapeDtypeStruct((3,), jnp.float32)},
    )
    with pytest.raises(types.InputError, match=r"params/v .*params/w"):
      checkpoint.restore(manager, wrong)


def test_metrics_beyond_the_restored_step_are_dropped(tmp_path):
  first = writers.JsonLines(tmp_path, 0)
  for step in (1, 2, 3):
    first.write(step, {"loss": float(step)})
  first.close()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 4, "lo')  # killed while writing
  writers.JsonLines(tmp_path, 2).close()
  assert [row["step"] for row in writers.read_metrics(tmp_path)] == [1, 2]


def test_metrics_stay_json_and_may_be_deleted_under_a_run(tmp_path):
  path = tmp_path / "metrics.jsonl"
  sink = writers.JsonLines(tmp_path, 0)
  sink.write(1, {"loss": 1.0})
  path.unlink()
  sink.write(2, {"loss": math.nan, "grad_norm": math.inf, "rate": np.float64("nan")})
  sink.close()

  def refuse(word):
    raise AssertionError(word)

  (line,) = path.read_text().splitlines()
  assert json.loads(line, parse_constant=refuse)["step"] == 2
  (row,) = writers.read_metrics(tmp_path)
  assert math.isnan(row["loss"])
  writers.JsonLines(tmp_path, 5).close()  # a run that resumes writes it again
  assert json.loads(path.read_text(), parse_constant=refuse)["loss"] is None
