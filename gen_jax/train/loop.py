"""The training loop, for every task:

    restore
    at step i: evaluate -> save -> batch(i) -> dispatch step
               -> fetch the previous step's metrics -> finite check -> write
    final evaluate
    final save

A checkpoint of step i is saved after step i's evaluation, if due, so a run that is
killed and restarted does exactly the same as an uninterrupted one. Both wait for the
previous step's metrics: after a step i that is not finite nothing is evaluated, saved
or applied. The state before it is saved as step i, where a restarted run stops again.
"""

import contextlib
import dataclasses
import functools
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import orbax.checkpoint as ocp
from jax._src import distributed
from jax.experimental import multihost_utils

from gen_jax import ranges
from gen_jax.numbers import Numbers
from gen_jax.system import signals
from gen_jax.train import checkpoint, evaluators, writers
from gen_jax.train import state as states
from gen_jax.train import step as steps
from gen_jax.types import Batch, InputError, Mean, PyTree, unknown


class NotFiniteError(RuntimeError):
  """Loss or gradient of step `step` is not finite; the state before it is saved."""

  def __init__(self, step: int, metrics: Mapping[str, Mean]):
    self.step = step
    names = ("loss", "grad_norm")
    values = ", ".join(f"{name}={metrics[name].value:g}" for name in names)
    super().__init__(f"{values} at step {step}, which was not applied")


@dataclasses.dataclass(frozen=True)
class Config:
  """When to stop, and how often to log and save.

  Attributes:
    num_steps: stop after this many steps.
    num_epochs: stop after this many passes over the data, if that comes first.
    patience: stop if `monitor` has not improved for this many evaluations.
    monitor: the metric of 'best' and `patience`; its name determines whether lower is
      better, see `evaluators.cost`.
    log_every: steps between rows of training metrics.
    save_every: steps between checkpoints.
    keep: number of latest checkpoints to keep, besides the best.
    num_microbatches: microbatches per batch, to save memory.
    ema_decay, ema_warmup: of an average of the weights, see `step`; None: no average.
    health_check: check the first batch before the first step, see `health`.
    first_rows: show rows of the first batch before the first step, as the model sees
      them; also in the workdir's samples/first_rows.txt and .png.
    writers: trackers that also get metrics, images and text: wandb, trackio, mlflow,
      see `trackers`.
    profile_steps: (first, last): profile steps first to last - 1, see `profile`.
  """

  num_steps: ranges.Count
  num_epochs: ranges.Positive | None = None
  patience: ranges.Count | None = None
  monitor: str = "validation/loss"
  log_every: ranges.Count = 50
  save_every: ranges.Count = 500
  keep: ranges.Count = 2
  num_microbatches: ranges.Size = 1
  ema_decay: ranges.ProperFraction | None = None
  ema_warmup: ranges.NotNegative = 10.0
  health_check: bool = True
  first_rows: bool = True
  writers: tuple[str, ...] = ()
  profile_steps: tuple[ranges.Whole, ranges.Whole] | None = None

  def __post_init__(self) -> None:
    ranges.check(self)
    if self.profile_steps and not self.profile_steps[0] < self.profile_steps[1]:
      raise InputError(
        f"train.profile_steps={self.profile_steps} must be (first, last), first < last"
      )

  def total_steps(self, examples_per_epoch: int, batch_size: int) -> int:
    """The number of steps, by `num_steps` and `num_epochs`."""
    if self.num_epochs is None:
      return self.num_steps
    in_epochs = math.ceil(self.num_epochs * examples_per_epoch / batch_size)
    return min(self.num_steps, in_epochs)

  def check_batch_size(self, batch_size: int, num_batch_shards: int) -> None:
    """Raises InputError for a batch that devices and microbatches do not divide."""
    pieces = num_batch_shards * self.num_microbatches
    if batch_size % pieces:
      near = max(batch_size // pieces, 1) * pieces
      raise InputError(
        f"data.batch_size={batch_size} must be divisible by {pieces}: mesh data x fsdp"
        f" = {num_batch_shards}, times train.num_microbatches ="
        f" {self.num_microbatches}; try {near} or {near + pieces}"
      )


@dataclasses.dataclass(frozen=True)
class Result:
  """How training ended: 'finished', 'patience' or 'interrupted'."""

  state: states.TrainState
  progress: checkpoint.Progress
  reason: str


@contextlib.contextmanager
def _interrupts(first: int) -> Iterator[Callable[[int], bool]]:
  """Yields a function of the step: whether to stop because of a signal.

  Several processes stop at the same step if any of them gets a signal: from the second
  step on JAX agrees on that step. Before that, one process that ends ends all.
  """
  told: list[int] = []

  def agreed(step: int) -> bool:
    if step == first:
      return False
    if distributed.global_state.preemption_sync_manager is None:
      jax.config.update("jax_enable_preemption_service", True)
      distributed.global_state.initialize_preemption_sync_manager()
    if signals.asked() and not told:
      told.append(step)
      os.kill(os.getpid(), signal.SIGTERM)  # JAX handles it and tells the others
    return multihost_utils.reached_preemption_sync_point(step)

  with signals.held():
    yield (lambda _: bool(signals.asked())) if jax.process_count() == 1 else agreed


def _finite(step: int, metrics: steps.Metrics) -> steps.Metrics:
  """Waits for a step's metrics and returns them on the host; or NotFiniteError."""
  metrics = jax.device_get(metrics)
  if not all(math.isfinite(metrics[name].value) for name in ("loss", "grad_norm")):
    raise NotFiniteError(step, metrics)
  return metrics


def _is_ready(metrics: steps.Metrics) -> bool:
  return all(x.is_ready() for x in jax.tree.leaves(metrics) if hasattr(x, "is_ready"))


class _Window:
  """Sums of training metrics since the last row, and rates per second.

  Rates are without the first step, which compiles, and without the time of evaluation
  and saving. A step ends where its metrics are there: on its return if the device
  works synchronously, as CPUs do, else when they are fetched. `data_wait` is the share
  of that time in which the loop waited for batches.
  """

  def __init__(self, per_step: Mapping[str, float]):
    self._per_step = per_step
    self._sums: dict[str, Mean] = {}
    self._timed, self._away, self._waited = -1, 0.0, 0.0
    self._began = self._ended = -math.inf

  def _clock(self) -> float:
    return time.monotonic() - self._away

  def end(self, metrics: steps.Metrics) -> float | None:
    """When the step that returned `metrics` ended; None: it is still at work."""
    if self._began == -math.inf:
      jax.block_until_ready(metrics)
      self._began = self._clock()
    return self._clock() if _is_ready(metrics) else None

  def add(
    self, step: int, metrics: steps.Metrics, ended: float | None, waited: float
  ) -> None:
    """Counts a step.

    Args:
      ended: see `end`.
      waited: seconds for its batch.
    """
    metrics = _finite(step, metrics)
    for name, mean in metrics.items():
      self._sums[name] = self._sums[name] + mean if name in self._sums else mean
    self._ended = self._clock() if ended is None else ended
    self._timed += 1
    self._waited += waited if self._timed else 0.0

  @contextlib.contextmanager
  def paused(self, state: states.TrainState) -> Iterator[None]:
    """Excludes the body's time, after waiting for the steps up to `state`."""
    jax.block_until_ready(state)
    began = time.monotonic()
    yield
    self._away += time.monotonic() - began

  def row(self, rate: float) -> dict[str, float]:
    values = {name: float(m.value) for name, m in self._sums.items()}
    values["learning_rate"] = rate
    if self._timed:
      per_sec = self._timed / (secs := self._ended - self._began)
      values |= {name: amount * per_sec for name, amount in self._per_step.items()}
      values["data_wait"] = self._waited / secs
    self._sums, self._timed, self._began, self._waited = {}, 0, self._ended, 0.0
    return values


@contextlib.contextmanager
def _rescued(
  manager: ocp.CheckpointManager,
  sinks: Sequence[writers.Writer],
  save: Callable[[], None] | None = None,
) -> Iterator[None]:
  """After a signal, saves and ends the process without waiting for a slow body.

  Args:
    save: None: nothing to save. One of several processes cannot save alone.
  """
  several = jax.process_count() > 1
  if several and save:
    yield
    return

  def close():
    if save:
      save()
    if not several:
      manager.wait_until_finished()
    for sink in sinks:
      sink.close()

  with signals.rescued(close):
    yield


def _write(sinks: Sequence[writers.Writer], step: int, values: dict) -> None:
  for sink in sinks:
    sink.write(step, values)


def _monitored(
  config: Config, values: Mapping[str, object], *, at_start: bool, all_due: bool
) -> float | None:
  """The monitored value, lower is better; None if this evaluation lacks it.

  Raises:
    InputError: no evaluator measures it: `patience` needs it, or the first evaluation
      ran all evaluators or had other metrics of its family.
  """
  numbers = {name: v for name, v in values.items() if isinstance(v, float)}
  if config.monitor in numbers:
    return evaluators.cost(config.monitor, numbers[config.monitor])
  families = {name.split("/")[0] for name in numbers}
  is_known = at_start and (all_due or config.monitor.split("/")[0] in families)
  if numbers and (config.patience or is_known):
    raise unknown("metric (train.monitor)", config.monitor, numbers)
  return None


def _reason(told: bool, config: Config, progress: checkpoint.Progress) -> str:
  """Why training ends before this step; 'finished' if it does not."""
  if told:
    return "interrupted"
  is_out = config.patience and progress.evals_since_best >= config.patience
  return "patience" if is_out else "finished"


def run(
  state: states.TrainState,
  *,
  progress: checkpoint.Progress,
  resumed: bool,
  step: steps.Step,
  numbers: Numbers,
  frozen: PyTree,
  stream: Callable[[int], Iterator[Batch]],
  evals: Sequence[evaluators.Evaluator],
  manager: ocp.CheckpointManager,
  sinks: Sequence[writers.Writer],
  config: Config,
  num_steps: int,
  learning_rate: Callable[[int], float],
  per_step: Mapping[str, float],
  heartbeat: Callable[[], None] = lambda: None,
  whole: Callable[[states.TrainState], states.TrainState] = lambda state: state,
  wait: Callable[[ocp.CheckpointManager], None] = checkpoint.wait,
) -> Result:
  """Trains until the last step, early stopping or a signal. See the module docstring.

  Args:
    resumed: `state` is from a checkpoint, so its step has been evaluated.
    stream: step -> iterator of batches from that step on.
    num_steps: the last step (config.total_steps).
    per_step: amounts per step, reported per second under their names.
    heartbeat: called before each step and checkpoint, which need all processes.
    whole: makes a state of what `step` returns, where anything but `step` needs it.
    wait: see `checkpoint.wait`; called at the end.

  Raises:
    NotFiniteError, InputError: after saving the last good state.
    states.NotFiniteError: instead of saving; earlier checkpoints stay.
  """
  first = int(state.step)
  window = _Window(per_step)
  saved_at = first if resumed else -1

  write = functools.partial(_write, sinks)
  rescued = functools.partial(_rescued, manager, sinks)

  def due(i):
    return [e for e in evals if e.every and i % e.every == 0]

  def evaluate(i, some):
    nonlocal progress, state
    values = {}
    if some:
      state = whole(state)
    for evaluator in some:
      with window.paused(state), rescued(lambda: keep(False)):
        values.update(evaluator(state.weights, frozen))
    if values:
      write(i, values)
    value = _monitored(config, values, at_start=i == 0, all_due=len(some) == len(evals))
    if value is None or i == 0:  # untrained weights are never the best
      return None
    progress = progress.update(i, value)
    return value if math.isfinite(value) else None

  def save(i, value=None):
    nonlocal saved_at, state
    if saved_at != i:
      heartbeat()
      state = whole(state)
      with window.paused(state):
        states.check_finite(state)
        checkpoint.save(manager, i, state, progress, value)
      saved_at = i

  def fetch(i, metrics, ended, waited):
    window.add(i, metrics, ended, waited)
    if (i + 1) % config.log_every == 0 or i + 1 == num_steps:
      write(i + 1, window.row(float(learning_rate(i))))

  def keep(evaluated):
    last = dataclasses.replace(progress, evaluated=evaluated)
    if pending is not None:
      fetch(*pending)
    if saved_at != int(state.step):
      checkpoint.save(manager, int(state.step), state, last)

  reason, pending, value, free = "finished", None, None, contextlib.nullcontext()
  with _interrupts(first) as interrupted, contextlib.ExitStack() as stack:
    stack.callback(wait, manager)
    batches = stream(first)
    try:
      for i in range(first, num_steps):
        if pending is not None and (due(i) or i % config.save_every == 0):
          _finite(*pending[:2])
        if not (resumed and i == first):
          value = evaluate(i, due(i))
          improved = value is not None and progress.best_step == i
          if improved or i % config.save_every == 0:
            save(i, value)
        reason = _reason(interrupted(i), config, progress)
        if reason != "finished":
          break
        with rescued() if i == first else free:  # it compiles; nothing to save
          asked = time.monotonic()
          with rescued(lambda: keep(True)):
            batch = next(batches)
          waited = time.monotonic() - asked
          heartbeat()
          state, metrics = step(state, frozen, batch, numbers)
          del batch  # freed while `next` is timed, it would let readers run first
        if pending is not None:
          fetch(*pending)
        pending = (i, metrics, window.end(metrics), waited)
      if pending is not None:
        fetch(*pending)
    except (NotFiniteError, InputError) as error:
      # Bad data may concern one of several processes, which cannot save alone.
      if isinstance(error, NotFiniteError) or jax.process_count() == 1:
        state = states.standing(whole(state))
        save(int(state.step))
      raise
    state = whole(state)
    last = int(state.step)
    if reason == "finished" and last != saved_at:
      value = evaluate(last, evals)
    save(last, value if reason != "interrupted" else None)
  return Result(state, progress, reason)
