"""Asynchronous checkpoints with orbax: the latest two and the best one are kept.

A step's folder holds 'state' (sharded arrays), 'progress' (JSON) and a hash of every
file, see `train.items`. Restoring checks the hashes, then names and shapes against the
abstract state; damaged steps are skipped, newest first, so that damage costs an
interval and not the run.
"""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from gen_jax.system import files, signals
from gen_jax.train import items, proof
from gen_jax.train import state as states
from gen_jax.types import InputError, Params, first_line

T = TypeVar("T")

_METRICS = "metrics/metrics"  # orbax's file of the monitored value


@dataclasses.dataclass(frozen=True)
class Progress:
  """The state of early stopping.

  Attributes:
    best: lowest value so far of the monitored metric, or of its negative if higher is
      better.
    best_step: its step; -1 if never measured.
    evals_since_best: number of evaluations since then.
    evaluated: whether this step's evaluation is complete; a signal may cut it short.
  """

  best: float = math.inf
  best_step: int = -1
  evals_since_best: int = 0
  evaluated: bool = True

  def update(self, step: int, value: float) -> "Progress":
    """The progress after one more evaluation."""
    if value < self.best:
      return Progress(value, step, 0)
    return dataclasses.replace(self, evals_since_best=self.evals_since_best + 1)


class _Manager(ocp.CheckpointManager):
  """A manager that treats a step's damaged metrics as not measured."""

  def metrics(self, step: int):
    try:
      found = super().metrics(step)
    except ValueError:
      return None
    folder = _folder(self, step)
    is_number = isinstance(found, dict) and isinstance(
      found.get("monitored"), float | int
    )
    return found if is_number and proof.is_as_written(folder, _METRICS) else None


@contextlib.contextmanager
def open_manager(
  workdir: str | pathlib.Path, *, keep: int = 2, read_only: bool = False
) -> Iterator[ocp.CheckpointManager]:
  """The orbax manager of a workdir; on exit it waits for pending saves.

  Args:
    keep: number of latest steps to keep.
    read_only: nothing is written, cleaned up or deleted.

  Raises:
    InputError: the file system refused a write (a full disk), or a written checkpoint
      cannot be read back.
  """
  directory = items.home(workdir)
  best = policies.BestN(
    get_metric_fn=lambda m: -m["monitored"], n=1, keep_checkpoints_without_metrics=False
  )
  policy = policies.AnyPreservationPolicy([policies.LatestN(keep), best])
  options = ocp.CheckpointManagerOptions(
    preservation_policy=None if read_only else policy,
    best_fn=lambda metrics: metrics["monitored"],  # orbax needs it to write metrics
    best_mode="min",
    create=not read_only,
    cleanup_tmp_directories=not read_only,
    read_only=read_only,
    save_interval_steps=0 if read_only else 1,
    temporary_path_class=proof.path_class(directory),
    # In a bucket nothing is made, and if it is away, writers would wait for that.
    async_options=ocp.AsyncOptions(
      create_directories_asynchronously=files.is_local(directory)
    ),
  )
  handlers = items.handlers("progress")
  with (
    items.using(directory),
    _Manager(directory, options=options, item_handlers=handlers) as manager,
  ):
    yield manager


def save(
  manager: ocp.CheckpointManager,
  step: int,
  state: states.TrainState,
  progress: Progress,
  monitored: float | None = None,
) -> None:
  """Starts an asynchronous save; `monitored` is this step's value, if measured.

  Raises:
    InputError: not enough free space (checked first); the workdir is gone.
  """
  items.check_room(proof.as_path(manager.directory), f"step {step}", state)
  if step in manager.all_steps():  # saved without evaluation after a signal
    manager.delete(step)
  with signals.deferred():
    manager.save(
      step,
      args=ocp.args.Composite(
        state=proof.StateSave(state),
        progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
      ),
      metrics=None if monitored is None else {"monitored": monitored},
    )


def wait(manager: ocp.CheckpointManager) -> None:
  """Returns when all that was saved is on the disk.

  Raises: what the writing did.
  """
  manager.wait_until_finished()


def _folder(manager: ocp.CheckpointManager, step: int) -> pathlib.Path:
  return proof.as_path(manager.directory) / str(step)


def saved_shapes(manager: ocp.CheckpointManager, step: int) -> proof.Shapes:
  """{path: shape} of a checkpoint's state: 'params/...', 'ema/...', 'step', ...

  From the arrays' metadata: hashes are checked when values are read.

  Raises:
    InputError: no such step, or it is damaged.
  """

  def read(step):
    return items.shapes(_folder(manager, step))

  found = _newest(manager, read, step, None, _no_warning)
  assert found is not None  # of one step: there, or it has raised
  return found


def _no_warning(text: str) -> None:
  """Drops a warning that reading the weights repeats."""


def find_step(
  manager: ocp.CheckpointManager, which: str, warn: Callable[[str], None] = print
) -> int:
  """The step of 'best', 'latest' or a number.

  Args:
    warn: called if 'best' has to be the latest, and for damaged metrics.

  Raises:
    InputError: there is none.
  """
  steps = sorted(manager.all_steps())
  if not steps:
    raise InputError(f"no checkpoint in {manager.directory}")
  if which == "latest":
    return steps[-1]
  if which == "best":
    return _best(manager, steps, warn)
  if int(which) not in steps:
    raise InputError(
      f"no checkpoint at step {which} in {manager.directory}; there are: {steps}"
    )
  return int(which)


def _best(manager, steps: Sequence[int], warn: Callable[[str], None]) -> int:
  """The step with the lowest monitored value, without step 0 (untrained)."""
  metrics = {step: manager.metrics(step) for step in steps}
  for step in steps:
    if not proof.is_as_written(_folder(manager, step), _METRICS):
      warn(f"the metrics of step {step} are damaged: it cannot be the best")
  values = {s: m["monitored"] for s, m in metrics.items() if m and s > 0}
  finite = {s: value for s, value in values.items() if math.isfinite(value)}
  if finite:
    return min(finite, key=lambda step: finite[step])
  if len(steps) > 1 or steps[-1] > 0:
    warn(f"no trained step was evaluated: using the latest, {steps[-1]}, as the best")
  return steps[-1]


def _newest(
  manager: ocp.CheckpointManager,
  read: Callable[[int], T],
  step: int | None,
  prefer: int | None,
  warn: Callable[[str], None],
) -> T | None:
  """`read` of `step`, or of the newest step that can be read.

  Args:
    step: only this one; None: any.
    prefer: try this one first, then the newest.
    warn: called for every skipped step.

  Raises:
    InputError: no such step, one raised by `read`, or no readable step.
  """
  existing = sorted(manager.all_steps())
  if step is not None and step not in existing:
    raise InputError(
      f"no checkpoint at step {step} in {manager.directory}; there are: {existing}"
    )
  newest_first = sorted(existing, key=lambda s: (s == prefer, s), reverse=True)
  damaged: dict[int, str] = {}
  for candidate in newest_first if step is None else [step]:
    try:
      with signals.deferred():
        result = read(candidate)
    except InputError:
      raise
    except Exception as error:
      proof.check_answers(error, _folder(manager, candidate))
      # Any exception of orbax or tensorstore: the folder is damaged.
      damaged[candidate] = first_line(error)[:200]
      continue
    for other, reason in damaged.items():
      warn(f"step {other} cannot be read ({reason}); going back to step {candidate}")
    return result
  if damaged:
    raise InputError(
      f"no checkpoint in {manager.directory} can be read, of {sorted(damaged)}"
      f" ({next(iter(damaged.values()))}); move that folder away to start again"
    )
  return None


def restore(
  manager: ocp.CheckpointManager,
  abstract: states.TrainState,
  *,
  step: int | None = None,
  prefer: int | None = None,
  warn: Callable[[str], None] = print,
) -> tuple[states.TrainState, Progress] | None:
  """Restores the state of `step`, or of the newest step; None if there is none.

  Args:
    abstract: state with shardings.
    step, prefer, warn: see `_newest`.

  Raises:
    InputError: see `_newest`; another model.
  """

  def read(candidate: int) -> tuple[states.TrainState, Progress]:
    folder = _folder(manager, candidate)
    state, progress = items.read(folder, abstract, "progress", warn=warn)
    # Orbax may share buffers with its caches: copy them before donation.
    return jax.tree.map(lambda x: x.copy(), state), Progress(**progress)

  return _newest(manager, read, step, prefer, warn)


def restore_weights(
  manager: ocp.CheckpointManager,
  abstract: Params,
  *,
  part: str = "params",
  step: int | None = None,
  prefer: int | None = None,
  warn: Callable[[str], None] = print,
) -> tuple[Params, int] | None:
  """Restores only the weights; returns them and their step, or None without steps.

  Args:
    abstract: parameters with shardings.
    part: 'params', 'ema', or the path of a part of these.
    step, prefer, warn: see `_newest`.

  Raises:
    InputError: see `_newest`; another model.
  """

  def read(candidate: int) -> tuple[Params, int]:
    folder = _folder(manager, candidate)
    return items.read(folder, abstract, None, f"{part}/", warn)[0], candidate

  return _newest(manager, read, step, prefer, warn)


def quarantine_newer_than(manager: ocp.CheckpointManager, step: int) -> None:
  """Renames damaged checkpoints newer than `step`: N -> N.damaged-<time>.

  Orbax refuses to save steps before existing ones.
  """
  newer = [s for s in manager.all_steps() if s > step]
  if newer and jax.process_index() == 0:
    for path in (_folder(manager, s) for s in newer):
      path.rename(path.with_name(f"{path.name}.damaged-{time.time_ns()}"))
  if newer:
    multihost_utils.sync_global_devices("damaged checkpoints are renamed")
    manager.reload()
