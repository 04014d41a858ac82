"""Trains a run: begins or resumes it, under the lease of its folder."""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Iterator, Mapping

import jax

from gen_jax import experiment as experiments
from gen_jax import numbers as numbering
from gen_jax import sharding, tree
from gen_jax.cost import flops, plan
from gen_jax.data import batches
from gen_jax.inference import sheets
from gen_jax.runs import bill, lease, weights, workdir
from gen_jax.system import copies, files
from gen_jax.train import checkpoint, evaluators, health, loop, profile, writers
from gen_jax.train import state as states
from gen_jax.train import step as steps
from gen_jax.types import Diverged, InputError


class Alone:
  """The group of a run of one process; those of several answer to the same names."""

  process_id = 0
  main_process_first = staticmethod(contextlib.nullcontext)

  def heartbeat(self) -> None:
    """Says that this process has come on: nobody listens."""


def train(config: dict, directory: pathlib.Path, group: Alone) -> dict:
  """Trains to the config's end, or until a signal asks for it.

  Returns:
    workdir, reason ('finished', 'patience' or 'interrupted'), step, and the last value
    of each metric.

  Raises:
    InputError: a workdir of another config or at work, data or numbers that cannot be.
  """
  if workdir.is_imported(directory):
    raise InputError(
      f"{directory} holds imported weights, without an optimiser to go on with; train"
      f" in another --workdir with --config.init_from.workdir={directory}"
    )
  # Refuse a bad config before anything is written.
  experiments.make(config, None)
  # One lease for all processes of a run.
  with contextlib.nullcontext() if group.process_id else lease.hold(directory):
    return _train(config, directory, group)


def _train(config: dict, directory: pathlib.Path, group: Alone) -> dict:
  began = time.time()
  with contextlib.ExitStack() as claimed:  # all that bad input can stop
    with group.main_process_first():
      before = claimed.enter_context(workdir.claim(directory, config))
      experiment = experiments.make(config, directory)
      examples = experiment.pipeline("train")
      evals = experiment.evaluators()
      remarks = (workdir.unlike_start(config), experiment.data.remark())
      if not group.process_id and any(remarks):
        print(*filter(None, remarks), sep="\n", flush=True)
    frozen = weights.load_frozen(experiment, directory)
    experiment = dataclasses.replace(experiment, frozen=frozen)
    layout, data = experiment.layout, experiment.data
    num_steps = experiment.train.total_steps(len(examples.examples), data.batch_size)
    _check_length(experiment, before, num_steps, len(examples.examples), directory)
    optimizer, rate = experiment.optimizer(num_steps)
    rate = numbering.jit(rate)
    rate(0)  # compiled before anything is timed
    abstract = experiment.abstract_state(optimizer)
    plan.check_fits(experiment, abstract)
    work = experiment.flops_per_step()
    step, numbers = _fitting_step(experiment, optimizer, abstract)
    base = None
    if experiment.source and (
      experiment.adapter or workdir.latest_step(directory) is None
    ):
      loaded = weights.load_base(directory, experiment)
      base, which = loaded.params, f"step {loaded.step} ({loaded.weights} weights)"
      print(f"starting from {experiment.source.workdir}, {which}", flush=True)
  if experiment.adapter:
    evals = [evaluators.WithWeights(e, _merged(experiment)) for e in evals]

  with (
    checkpoint.open_manager(directory, keep=experiment.train.keep) as manager,
    contextlib.ExitStack() as profiling,
  ):
    restored = checkpoint.restore(manager, abstract)
    evaluated = restored is not None and restored[1].evaluated
    if restored is None:
      progress = checkpoint.Progress()
      state = _fresh_state(experiment, optimizer, abstract, base)
    else:
      state, progress = restored
      progress = dataclasses.replace(progress, evaluated=True)
      checkpoint.quarantine_newer_than(manager, int(state.step))
    start = int(state.step)
    attention = sorted({*_chosen("attention_impl", config["task"])} or {"xla"})
    print(
      f"{'resuming' if restored else 'training'} {directory} from step {start} of"
      f" {num_steps}: {tree.size(state.params):,} parameters, mesh"
      f" {_mesh(layout)}, attention by {' and '.join(attention)}",
      flush=True,
    )
    if not group.process_id and (cost := bill.line(directory)):
      print(f"  {cost}", flush=True)
    rows = layout.local_rows(data.batch_size)
    if between := experiment.train.profile_steps:
      say = functools.partial(print, flush=True) if not group.process_id else len
      step = profiling.enter_context(
        profile.traced(step, between, start, directory / "profile", say)
      )

    def stream(first):
      for batch in examples.stream(first, rows):
        yield layout.put(batch, data.batch_size)

    if restored is None and experiment.train.health_check:
      first = layout.put(examples.batch(0, rows), data.batch_size)
      _health(experiment, state, base, first, numbers, num_steps, directory)
    sinks = []
    if group.process_id == 0:
      kept = -1 if restored is None else start  # a fresh run evaluates step 0 again
      if kept > 0 and not (directory / "metrics.jsonl").exists():
        print("metrics.jsonl is gone: its rows up to this step are lost", flush=True)
      hours = bill.Bill(directory, began, layout.mesh.devices.ravel().tolist())
      sinks = [*_sinks(directory, kept, start, num_steps), hours]
    try:
      result = loop.run(
        state,
        progress=progress,
        resumed=evaluated,
        step=step,
        numbers=numbers,
        frozen=experiment.learner_frozen(base),
        stream=stream,
        evals=evals,
        manager=manager,
        sinks=sinks,
        config=experiment.train,
        num_steps=num_steps,
        learning_rate=rate,
        per_step=_per_step(experiment, work),
        heartbeat=group.heartbeat,
      )
    except states.NotFiniteError as error:
      raise Diverged(
        f"{error}, though its loss and gradient were; they are not saved,"
        f" earlier checkpoints of {directory} stay: begin again with a lower rate"
      ) from error
    except loop.NotFiniteError as error:
      raise Diverged(_not_finite(error, experiment, examples, directory)) from error
    finally:
      for sink in sinks:
        sink.close()
  last = {}
  for row in writers.read_metrics(directory):
    last.update(row)
  step = int(result.state.step)
  cost = None if group.process_id else bill.line(directory)
  print(*filter(None, (f"{result.reason} at step {step}", cost)), sep="\n", flush=True)
  return {"workdir": str(directory), "reason": result.reason, **last, "step": step}


def _sinks(directory: pathlib.Path, kept: int, start: int, num_steps: int):
  """Where metrics and images go; rows and sheets up to step `kept` stay."""
  here, more = directory, []
  if not files.is_local(directory):  # nothing can be appended there
    here, name = copies.scratch("metrics"), "metrics.jsonl"
    copies.remove(here)
    here.mkdir()
    if (directory / name).exists():
      copies.copy(directory / name, here / name)
    more = [writers.Upload(here, directory)]
  return [
    writers.JsonLines(here, kept),
    writers.TensorBoard(here, kept),
    writers.ImageFiles(directory, kept, sheets.save_sheet),
    writers.Terminal(start, num_steps, directory.name),
    *more,
  ]


def _not_finite(error, experiment, examples, directory: pathlib.Path) -> str:
  """What went wrong, at which step, and with which examples, in one line."""
  found = batches.rows(experiment.tokenizer, examples, error.step)
  shown = ", ".join(str(row["index"]) for row in found[:8])
  return (
    f"{error}; the state before it is saved as step {error.step}. Its batch holds the"
    f" examples {shown}{', ...' if len(found) > 8 else ''} of"
    f" {experiment.config['data']['source']}, {batches.line(batches.oddest(found))}:"
    f" `gen-jax inspect --workdir {directory}"
    f" --step {error.step}` shows them all. Mend the data, or begin again with a lower"
    " learning rate"
  )


def _health(
  experiment, state, base, batch, numbers, num_steps: int, directory: pathlib.Path
) -> None:
  """Prints what the first batch shows; also written to health.json."""
  data = experiment.data
  narrow = {*_chosen("dtype", experiment.config["task"])} - {"float32"}
  found = health.examine(
    experiment.learner,
    state,
    experiment.learner_frozen(base),
    batch,
    numbers,
    experiment.layout,
    num_microbatches=experiment.train.num_microbatches,
    expected_loss=experiment.expected_loss,
    num_items=float(data.items_per_step * num_steps),
    tolerance=5e-2 if narrow else 1e-2,
  )
  for line in found.lines(data.unit):
    print(f"  {line}", flush=True)
  workdir.write_json(directory / "health.json", dataclasses.asdict(found))


def _per_step(experiment, work: dict[str, float]) -> dict[str, float]:
  """What a step does, for rates per second; prints the formula and the peak of MFU."""
  devices = experiment.layout.mesh.devices
  peak, source = flops.peak(devices.flat[0])
  causal = ""
  if "mfu_causal" in work:
    causal = f" ({work['mfu_causal']:.4g} with causal attention halved)"
  print(
    f"  mfu = {work['mfu']:.4g} FLOPs a step{causal}, forward and gradient, over"
    f" {devices.size} x {peak:.4g} FLOP/s ({source})",
    flush=True,
  )
  data = experiment.data
  shares = {name: value / (peak * devices.size) for name, value in work.items()}
  return {f"{data.unit}_per_sec": float(data.items_per_step), **shares}


def _check_length(experiment, before, num_steps, num_examples, directory) -> None:
  """Says what another number of steps means for a run that has begun.

  Args:
    before: what the config said before, see `workdir.claim`.

  Raises:
    InputError: the run is beyond its new end.
  """
  done = workdir.latest_step(directory) or 0
  if done > num_steps:
    raise InputError(
      f"{directory} is at step {done}, beyond the {num_steps} that train.num_steps and"
      f" train.num_epochs now ask for: a run can be lengthened, not cut; give at least"
      f" {done}, or take another --workdir"
    )
  length = {k.split(".")[1]: v for k, v in before.items() if k in workdir.LENGTH}
  earlier = dataclasses.replace(experiment.train, **length)
  was = earlier.total_steps(num_examples, experiment.data.batch_size)
  if done and was != num_steps:
    print(
      f"{num_steps} steps in place of {was}: from step {done} on the learning rate is"
      f" that of a run of {num_steps}; the steps before were taken at that of {was}",
      flush=True,
    )


def _fitting_step(experiment, optimizer, abstract):
  """The training step, compiled, which this machine can hold; and its numbers."""
  step = steps.make_step(
    experiment.learner,
    optimizer,
    layout=experiment.layout,
    num_microbatches=experiment.train.num_microbatches,
    decay=experiment.train.ema_decay,
  )
  held = (abstract, experiment.abstract_frozen(), experiment.batch())
  numbers = steps.numbers(step, *held)
  numbers = numbering.rounded(numbers)
  numbers = jax.device_put(numbers, experiment.layout.replicated)
  step = steps.compile_step(step, abstract, experiment.layout)
  plan.check_fits(experiment, abstract, step.lower(*held, numbers).compile())
  return step, numbers


def _fresh_state(experiment, optimizer, abstract, base) -> states.TrainState:
  """At step 0: drawn at random, or around the weights of `init_from`."""
  if base is not None and not experiment.adapter:
    return states.start_from(base, optimizer, abstract, experiment.seed)
  return states.create(
    experiment.learner,
    optimizer,
    experiment.batch(),
    experiment.layout,
    experiment.seed,
    with_ema=experiment.train.ema_decay is not None,
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
