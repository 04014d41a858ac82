"""Trains a run: begins or resumes it, under the lease of its folder."""

import contextlib
import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gen_jax import experiment as experiments
from gen_jax import numbers as numbering
from gen_jax import sharding, tree
from gen_jax.cost import flops
from gen_jax.data import batches, pipeline
from gen_jax.inference import sheets
from gen_jax.runs import bill, first_rows, lease, programs, weights, workdir
from gen_jax.system import copies, files
from gen_jax.train import (
  checkpoint,
  evaluators,
  health,
  loop,
  profile,
  trackers,
  writers,
)
from gen_jax.train import state as states
from gen_jax.train import step as steps
from gen_jax.types import Batch, Diverged, InputError, Params, PyTree


class Alone:
  """The group of a run of one process; those of several answer to the same names."""

  process_id = 0
  main_process_first = staticmethod(contextlib.nullcontext)

  def heartbeat(self) -> None:
    """Says that this process has come on: nobody listens."""


class Solo:
  """A run that shares nothing; those of a group answer to the same names."""

  share = property(lambda self: 1.0)  # of the devices
  program = staticmethod(programs.program)
  wait = staticmethod(checkpoint.wait)

  def experiment(self, config: dict, directory: pathlib.Path):
    """The experiment, whose tokenizer and names of classes are in the folder."""
    return experiments.make(config, directory)

  def evaluators(self, experiment: experiments.Experiment):
    """Those of the config."""
    return experiment.evaluators()

  def step(self, program: programs.Program) -> steps.Step:
    """The training step, compiled."""
    return program.compiled()

  def whole(self, state: Any) -> states.TrainState:
    """The state that a step has returned."""
    return state

  def stream(self, experiment, examples, first: int) -> Iterator[Batch]:
    """Batches from step `first` on, placed on the devices."""
    layout, size = experiment.layout, experiment.data.batch_size
    given = examples.stream(first, layout.local_rows(size))
    yield from batches.ahead(lambda: layout.put(next(given), size))


def train(
  config: dict,
  directory: pathlib.Path,
  group: Alone,
  shared: Solo | None = None,
  until: int | None = None,
) -> dict:
  """Trains to the config's end, or until a signal asks for it.

  Args:
    shared: what this run shares with others of its process, see `together`.
    until: end at this step if it comes first, evaluated and saved as at the end. The
      run goes on from there as if it had not stopped.

  Returns:
    workdir, reason ('finished', 'until', 'patience' or 'interrupted'), step, and the
    last value of each metric.

  Raises:
    InputError: a workdir of another config or at work, data or numbers that cannot be.
  """
  if workdir.is_imported(directory):
    raise InputError(
      f"{directory} holds imported weights, without an optimiser to go on with; train"
      f" in another --workdir with --config.init_from.workdir={directory}"
    )
  if shared is None:  # a group's configs are checked
    shared = Solo()
    experiments.make(config, None)  # refuses a bad one before anything is written
  # One lease for all processes of a run.
  with contextlib.nullcontext() if group.process_id else lease.hold(directory):
    begun = _begin(config, directory, group, shared)
    return _train(begun, directory, group, shared, until)


_SAY = functools.partial(print, flush=True)


@dataclasses.dataclass(frozen=True, eq=False)
class _Begun:
  """What training needs besides the state.

  Attributes:
    trackers: what opens each of train.writers, by name.
    base: weights that it starts from, or whose adapters it trains; None: neither.
    at: when the process began with it, seconds since 1970.
  """

  experiment: experiments.Experiment
  examples: pipeline.Pipeline
  evals: Sequence[evaluators.Evaluator]
  program: programs.Program
  step: steps.Step
  trackers: Mapping[str, trackers.Open]
  base: Params | None
  at: float

  @property
  def frozen(self) -> PyTree:
    return self.experiment.learner_frozen(self.base)


def _begin(config: dict, directory: pathlib.Path, group: Alone, shared: Solo) -> _Begun:
  """Claims the folder and does all that bad input can stop."""
  began = time.time()
  with contextlib.ExitStack() as claimed:
    with group.main_process_first():
      before = claimed.enter_context(workdir.claim(directory, config))
      experiment = shared.experiment(config, directory)
      examples = experiment.pipeline("train")
      evals = shared.evaluators(experiment)
      tracked = {} if group.process_id else experiment.trackers()
      remarks = (workdir.unlike_start(config), experiment.data.remark())
      if not group.process_id and any(remarks):
        print(*filter(None, remarks), sep="\n", flush=True)
    frozen = weights.load_frozen(experiment, directory)
    experiment = dataclasses.replace(experiment, frozen=frozen)
    made = shared.program(experiment, len(examples.examples))
    _check_length(made, before, directory)
    step = shared.step(made)
    base = None
    if experiment.source and (
      experiment.adapter or workdir.latest_step(directory) is None
    ):
      loaded = weights.load_base(directory, experiment)
      base, which = loaded.params, f"step {loaded.step} ({loaded.weights} weights)"
      print(f"starting from {experiment.source.workdir}, {which}", flush=True)
  if experiment.adapter:
    evals = [evaluators.WithWeights(e, _merged(experiment)) for e in evals]
  return _Begun(experiment, examples, evals, made, step, tracked, base, began)


def _train(
  begun: _Begun, directory: pathlib.Path, group: Alone, shared: Solo, until: int | None
) -> dict:
  experiment, made, step = begun.experiment, begun.program, begun.step
  numbers = made.arguments()
  with (
    checkpoint.open_manager(directory, keep=experiment.train.keep) as manager,
    contextlib.ExitStack() as used,
  ):
    state, progress, is_new = _state(begun, manager)
    start = int(state.step)
    _announce(begun, directory, state, is_new)
    if not group.process_id and (cost := bill.line(directory)):
      print(f"  {cost}", flush=True)
    if between := experiment.train.profile_steps:
      say: Callable[[str], object] = len if group.process_id else _SAY
      step = used.enter_context(
        profile.traced(step, between, start, directory / "profile", say)
      )
    if is_new:
      _look(begun, state, numbers, directory, group)
    sinks = []
    if group.process_id == 0:
      kept = -1 if is_new else start  # a fresh run evaluates step 0 again
      if kept > 0 and not (directory / "metrics.jsonl").exists():
        print("metrics.jsonl is gone: its rows up to this step are lost", flush=True)
      sinks = _sinks(begun, directory, kept, start, shared.share)
      for sink in reversed(sinks):  # closed in order: the copies into a bucket last
        used.callback(sink.close)
    try:
      result = loop.run(
        state,
        progress=dataclasses.replace(progress, evaluated=True),
        resumed=not is_new and progress.evaluated,
        step=step,
        numbers=numbers,
        frozen=begun.frozen,
        stream=functools.partial(shared.stream, experiment, begun.examples),
        evals=begun.evals,
        manager=manager,
        sinks=sinks,
        config=experiment.train,
        num_steps=min(made.num_steps, until or made.num_steps),
        learning_rate=made.rate,
        per_step=_per_step(experiment, made.compute),
        heartbeat=group.heartbeat,
        whole=shared.whole,
        wait=shared.wait,
      )
    except states.NotFiniteError as error:
      raise Diverged(
        f"{error}, though its loss and gradient were; they are not saved,"
        f" earlier checkpoints of {directory} stay: begin again with a lower rate"
      ) from error
    except loop.NotFiniteError as error:
      raise Diverged(_not_finite(error, begun, directory)) from error
  return _ended(result, made.num_steps, directory, group)


def _ended(
  result: loop.Result, num_steps: int, directory: pathlib.Path, group: Alone
) -> dict:
  """What `train` returns; says how it ended, and what it has cost."""
  last = {k: v for row in writers.read_metrics(directory) for k, v in row.items()}
  end = int(result.state.step)
  is_early = result.reason == "finished" and end < num_steps
  told = f"{'stopped' if is_early else result.reason} at step {end}"
  unknown = ", ".join(name for name, value in last.items() if math.isnan(value))
  told += f"; not finite: {unknown}" if unknown else ""
  cost = None if group.process_id else bill.line(directory)
  print(*filter(None, (told, cost)), sep="\n", flush=True)
  reason = "until" if is_early else result.reason
  return {"workdir": str(directory), "reason": reason, **last, "step": end}


def _state(
  begun: _Begun, manager
) -> tuple[states.TrainState, checkpoint.Progress, bool]:
  """State and progress, and whether they are new: at step 0, not restored."""
  made = begun.program
  restored = checkpoint.restore(manager, made.abstract)
  if restored is not None:
    checkpoint.quarantine_newer_than(manager, int(restored[0].step))
    return *restored, False
  if begun.base is not None and not begun.experiment.adapter:
    args = (begun.base, made.optimizer, made.abstract, begun.experiment.seed)
    return states.start_from(*args), checkpoint.Progress(), True
  return made.make_state(begun.experiment.seed), checkpoint.Progress(), True


def _announce(begun: _Begun, directory: pathlib.Path, state, is_new: bool) -> None:
  """Says what is trained, from where to where."""
  attention = sorted(
    {*_chosen("attention_impl", begun.experiment.config["task"])} or {"xla"}
  )
  _SAY(
    f"{'training' if is_new else 'resuming'} {directory} from step {int(state.step)} of"
    f" {begun.program.num_steps}: {tree.size(state.params):,} parameters, mesh"
    f" {_mesh(begun.experiment.layout)}, attention by {' and '.join(attention)}"
  )


def _sinks(begun: _Begun, directory: pathlib.Path, kept: int, start: int, share: float):
  """Where metrics, images and text go; what there is up to step `kept` stays."""
  here, more = directory, []
  if not files.is_local(directory):  # nothing can be appended there
    here = copies.scratch("metrics")
    copies.remove(here)
    here.mkdir()
    for name in ("metrics.jsonl", "writers", "mlflow"):
      if (directory / name).exists():
        copies.copy(directory / name, here / name)
    more = [writers.Upload(here, directory)]
  config, draw = begun.experiment.config, sheets.in_colour
  devices = begun.experiment.layout.mesh.devices.ravel().tolist()
  run = trackers.Run("", directory.name, here, config, workdir.flat(config), draw)
  return [
    *(trackers.Once(name, make, run) for name, make in begun.trackers.items()),
    writers.JsonLines(here, kept),
    writers.TensorBoard(here, kept, draw),
    writers.SampleFiles(directory, kept, sheets.save_sheet),
    writers.Terminal(start, begun.program.num_steps, directory.name),
    *more,
    bill.Bill(directory, begun.at, devices, share),
  ]


def _not_finite(error, begun: _Begun, directory: pathlib.Path) -> str:
  """What went wrong, at which step, and with which examples, in one line."""
  experiment = begun.experiment
  found = batches.rows(experiment.tokenizer, begun.examples, error.step)
  shown = ", ".join(str(row["index"]) for row in found[:8])
  return (
    f"{error}; the state before it is saved as step {error.step}. Its batch holds the"
    f" examples {shown}{', ...' if len(found) > 8 else ''} of"
    f" {experiment.config['data']['source']}, {batches.line(batches.oddest(found))}:"
    f" `gen-jax inspect --workdir {directory}"
    f" --step {error.step}` shows them all. Mend the data, or begin again with a lower"
    " learning rate"
  )


def _look(begun: _Begun, state, numbers, directory: pathlib.Path, group: Alone) -> None:
  """Shows what the first batch holds, and checks it."""
  experiment = begun.experiment
  if experiment.train.health_check:
    _health(begun, state, numbers, directory)
  if experiment.train.first_rows and not group.process_id:
    for line in first_rows.show(experiment, begun.examples, directory):
      print(f"  {line}", flush=True)


def _health(begun: _Begun, state, numbers, directory: pathlib.Path) -> None:
  """Prints what the first batch shows; also written to health.json."""
  experiment, made = begun.experiment, begun.program
  data, layout = experiment.data, experiment.layout
  rows = begun.examples.batch(0, layout.local_rows(data.batch_size))
  narrow = {*_chosen("dtype", experiment.config["task"])} - {"float32"}
  found = health.examine(
    made.gradient,
    state,
    begun.frozen,
    layout.put(rows, data.batch_size),
    numbers,
    layout,
    num_microbatches=experiment.train.num_microbatches,
    expected_loss=experiment.expected_loss,
    num_items=float(data.items_per_step * made.num_steps),
    tolerance=5e-2 if narrow else 1e-2,
  )
  for line in found.lines(data.unit):
    print(f"  {line}", flush=True)
  workdir.write_json(directory / "health.json", dataclasses.asdict(found))


def _per_step(experiment, work: Mapping[str, float]) -> dict[str, float]:
  """What a step does, for rates per second; prints the formula and the peak of MFU."""
  devices = experiment.layout.mesh.devices
  peak, source = flops.peak(devices.flat[0])
  causal = ""
  if "mfu_causal" in work:
    causal = f" ({work['mfu_causal']:.4g} with causal attention halved)"
  _SAY(
    f"  mfu = {work['mfu']:.4g} FLOPs a step{causal}, forward and gradient, over"
    f" {devices.size} x {peak:.4g} FLOP/s ({source})"
  )
  data = experiment.data
  shares = {name: value / (peak * devices.size) for name, value in work.items()}
  return {f"{data.unit}_per_sec": float(data.items_per_step), **shares}


def _check_length(made: programs.Program, before, directory: pathlib.Path) -> None:
  """Says what another number of steps means for a run that has begun.

  Args:
    before: what the config said before, see `workdir.claim`.

  Raises:
    InputError: the run is beyond its new end.
  """
  experiment, num_steps = made.experiment, made.num_steps
  done = workdir.latest_step(directory) or 0
  if done > num_steps:
    raise InputError(
      f"{directory} is at step {done}, beyond the {num_steps} that train.num_steps and"
      f" train.num_epochs now ask for: a run can be lengthened, not cut; give at least"
      f" {done}, or take another --workdir"
    )
  length = {k.split(".")[1]: v for k, v in before.items() if k in workdir.LENGTH}
  earlier = dataclasses.replace(experiment.train, **length)
  was = earlier.total_steps(made.num_examples, experiment.data.batch_size)
  if done and was != num_steps:
    _SAY(
      f"{num_steps} steps in place of {was}: from step {done} on the learning rate is"
      f" that of a run of {num_steps}; the steps before were taken at that of {was}"
    )


def _merged(experiment):
  """(adapters, frozen) -> (weights, frozen) of the task itself."""
  merge = numbering.jit(experiment.learner.merged)
  return lambda weights, frozen: (merge(weights, frozen), frozen.inner)


def _mesh(layout: sharding.Layout) -> str:
  return "x".join(f"{axis}={size}" for axis, size in layout.mesh.shape.items())


def _chosen(what: str, block: Mapping) -> Iterator[str]:
  """All that a config chooses under the key `what`, by name."""
  for key, value in block.items():
    if key == what:
      yield value if isinstance(value, str) else value["name"]
    elif isinstance(value, Mapping):
      yield from _chosen(what, value)
