"""Asynchronous checkpoints with orbax: the latest two and the best one are kept.

A step's folder holds 'state' (sharded arrays), 'progress' (JSON) and a hash of every
file, see `train.proof`. Restoring checks the hashes, then names and shapes against the
abstract state; damaged steps are skipped, newest first, so that damage costs an
interval and not the run.
"""

import contextlib
import dataclasses
import errno
import logging
import math
import os
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from gen_jax import tree
from gen_jax.system import files, memory, signals
from gen_jax.train import proof
from gen_jax.train import state as states
from gen_jax.types import InputError, Params, PyTree, first_line

T = TypeVar("T")

# Replicas each write a part of a large array. Small arrays are not split, since each
# shape and part needs a compiled program.
_ARRAYS = ocp.type_handlers.create_type_handler_registry(
  (
    jax.Array,
    ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20),
  )
)
_METRICS = "metrics/metrics"  # orbax's file of the monitored value
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_IDLE = "text_encoder"
_MAKE_ROOM = "make room; the same command then continues from the last checkpoint"


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
    folder = pathlib.Path(self.directory) / str(step)
    is_number = isinstance(found, dict) and isinstance(
      found.get("monitored"), float | int
    )
    return found if is_number and proof.is_as_written(folder, _METRICS) else None


@contextlib.contextmanager
def _without_warnings(name: str) -> Iterator[None]:
  """Orbax warns by absl that it does what it was asked to."""
  logger = logging.getLogger(name)
  level = logger.level
  logger.setLevel(max(level, logging.ERROR))
  try:
    yield
  finally:
    logger.setLevel(level)


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
  directory = pathlib.Path(workdir).absolute() / "checkpoints"
  proof.check_path(directory)
  policy = policies.AnyPreservationPolicy(
    [
      policies.LatestN(keep),
      policies.BestN(
        get_metric_fn=lambda m: -m["monitored"],
        n=1,
        keep_checkpoints_without_metrics=False,
      ),
    ]
  )
  options = ocp.CheckpointManagerOptions(
    preservation_policy=None if read_only else policy,
    best_fn=lambda metrics: metrics["monitored"],  # orbax needs it to write metrics
    best_mode="min",
    create=not read_only,
    cleanup_tmp_directories=not read_only,
    read_only=read_only,
    save_interval_steps=0 if read_only else 1,
    temporary_path_class=proof.ProvenPath,
  )
  handlers = {
    # Compression keeps a second copy in memory until all is written, and hardly
    # shrinks weights.
    "state": proof.StateHandler(use_compression=False, type_handler_registry=_ARRAYS),
    "progress": ocp.JsonCheckpointHandler(),
  }
  try:
    with (
      _without_warnings("absl"),
      _Manager(directory, options=options, item_handlers=handlers) as manager,
    ):
      yield manager
  except (ValueError, OSError) as error:
    reason = _refused(error)
    if reason is None:
      raise
    raise InputError(f"cannot write to {directory}: {reason}; {_MAKE_ROOM}") from error


def _refused(error: Exception) -> str | None:
  """The reason if the error is a write that the file system refused; else None."""
  if isinstance(error, OSError):
    return error.strerror if error.errno in _NO_ROOM else None
  code = re.search(r"os.error\D*(\d+)", str(error), re.IGNORECASE)  # tensorstore's
  return os.strerror(int(code[1])) if code else None


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
  try:
    pathlib.Path(manager.directory).mkdir(exist_ok=True)  # a user may delete it
  except OSError as error:
    raise InputError(f"cannot write to {manager.directory}: {error.strerror}") from None
  needed = tree.num_bytes(state) / jax.process_count()
  free = shutil.disk_usage(manager.directory).free
  if free < needed:
    raise InputError(
      f"cannot save step {step} to {manager.directory}: {needed / 2**20:,.2f} MiB"
      f" needed, {free / 2**20:,.2f} MiB free; {_MAKE_ROOM}"
    )
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


def saved_shapes(manager: ocp.CheckpointManager, step: int) -> proof.Shapes:
  """{path: shape} of a checkpoint's state: 'params/...', 'ema/...', 'step', ...

  From the arrays' metadata: hashes are checked when values are read.

  Raises:
    InputError: no such step, or it is damaged.
  """
  return _newest(manager, lambda s: _shapes(manager, s), step, None, _no_warning)


def _no_warning(text: str) -> None:
  """Drops a warning that reading the weights repeats."""


def _shapes(manager: ocp.CheckpointManager, step: int) -> proof.Shapes:
  saved = manager.item_metadata(step)["state"]
  saved = getattr(saved, "tree", saved)
  if saved is None:
    raise ValueError("its metadata is missing")
  return {p: tuple(m.shape) for p, m in tree.flatten(saved).items()}


def check(where: str, have: proof.Shapes, abstract: PyTree) -> None:
  """Raises InputError if {path: shape} are not those of `abstract`."""
  want = {p: tuple(x.shape) for p, x in tree.flatten(abstract).items()}
  wrong = [
    f"{path} (checkpoint {have.get(path, 'none')}, model {want.get(path, 'none')})"
    for path in sorted(have.keys() | want.keys())
    if have.get(path) != want.get(path)
  ]
  if wrong:
    more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
    raise InputError(
      f"checkpoint {where} belongs to another model: {'; '.join(wrong[:4])}{more}"
    )


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
  values = {step: manager.metrics(step) for step in steps}
  for step in steps:
    folder = pathlib.Path(manager.directory) / str(step)
    if not proof.is_as_written(folder, _METRICS):
      warn(f"the metrics of step {step} are damaged: it cannot be the best")
  values = {s: m["monitored"] for s, m in values.items() if m and s > 0}
  values = {s: value for s, value in values.items() if math.isfinite(value)}
  if values:
    return min(values, key=values.get)
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


def _verify(manager, step: int, warn: Callable[[str], None]) -> None:
  """Raises ValueError if a step's files do not have their hashes."""
  if not proof.verify(pathlib.Path(manager.directory) / str(step), step):
    warn(
      f"step {step} has no {files.HASHES} (earlier versions wrote none): its values are"
      " not verified"
    )


def _held(have: proof.Shapes, abstract: PyTree) -> proof.Shapes:
  """{path: shape} without a text encoder, where the model has none.

  Earlier versions kept an idle one for every unconditional model.
  """
  if any(_IDLE in path.split("/") for path in tree.flatten(abstract)):
    return have
  return {path: s for path, s in have.items() if _IDLE not in path.split("/")}


def _restoring(abstract: PyTree, **options) -> proof.StateRestore:
  """Arguments that restore a tree in the dtypes and shardings of `abstract`."""
  memory.check("the checkpoint", abstract)
  return proof.StateRestore(
    item=abstract,
    restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
    **options,
  )


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
    _verify(manager, candidate, warn)
    have = _shapes(manager, candidate)
    check(f"{manager.directory}/{candidate}", held := _held(have, abstract), abstract)
    options = {} if held == have else {"partial_restore": True}
    args = ocp.args.Composite(
      state=_restoring(abstract, **options), progress=ocp.args.JsonRestore()
    )
    restored = manager.restore(candidate, args=args)
    # Orbax may share buffers with its caches: copy them before donation.
    state = jax.tree.map(lambda x: x.copy(), restored["state"])
    return state, Progress(**restored["progress"])

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
    part: 'params' or 'ema'.
    step, prefer, warn: see `_newest`.

  Raises:
    InputError: see `_newest`; another model.
  """
  wanted = {part: abstract}

  def read(candidate: int) -> tuple[Params, int]:
    _verify(manager, candidate, warn)
    have = _held(_shapes(manager, candidate), abstract)
    have = {path: shape for path, shape in have.items() if path.startswith(f"{part}/")}
    check(f"{manager.directory}/{candidate}", have, wanted)
    args = ocp.args.Composite(state=_restoring(wanted, partial_restore=True))
    restored = manager.restore(candidate, args=args)
    return restored["state"][part], candidate

  return _newest(manager, read, step, prefer, warn)


def quarantine_newer_than(manager: ocp.CheckpointManager, step: int) -> None:
  """Renames damaged checkpoints newer than `step`: N -> N.damaged-<time>.

  Orbax refuses to save steps before existing ones.
  """
  newer = [s for s in manager.all_steps() if s > step]
  if newer and jax.process_index() == 0:
    for s in newer:
      path = pathlib.Path(manager.directory) / str(s)
      path.rename(path.with_name(f"{s}.damaged-{time.time_ns()}"))
  if newer:
    multihost_utils.sync_global_devices("damaged checkpoints are renamed")
    manager.reload()
