"""Checkpoints through orbax: asynchronous, the latest two and the best one.

A step's folder holds 'state' (sharded arrays) and 'progress' (JSON). Restoring checks
names and shapes against the abstract state and walks back over steps that cannot be
read, newest first, so that a damaged disk costs an interval and not the run.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from gen_jax import tree
from gen_jax.train import state as states
from gen_jax.types import InputError


@dataclasses.dataclass(frozen=True)
class Progress:
  """What early stopping remembers.

  Attributes:
    best: lowest value of the monitored metric so far.
    best_step: the step it was measured at, -1 for never.
    evals_since_best: evaluations since then.
  """

  best: float = math.inf
  best_step: int = -1
  evals_since_best: int = 0

  def update(self, step: int, value: float) -> "Progress":
    """Takes note of one more evaluation."""
    if value < self.best:
      return Progress(value, step, 0)
    return dataclasses.replace(self, evals_since_best=self.evals_since_best + 1)


def open_manager(workdir: str | pathlib.Path, *, keep: int = 2, read_only=False):
  """The orbax manager of a workdir."""
  directory = pathlib.Path(workdir).absolute() / "checkpoints"
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
    create=not read_only,
    cleanup_tmp_directories=not read_only,
    read_only=read_only,
  )
  return ocp.CheckpointManager(
    directory,
    options=options,
    item_handlers={
      "state": ocp.StandardCheckpointHandler(),
      "progress": ocp.JsonCheckpointHandler(),
    },
  )


def save(
  manager: ocp.CheckpointManager,
  step: int,
  state: states.TrainState,
  progress: Progress,
  monitored: float | None = None,
) -> None:
  """Starts an asynchronous save; `monitored` is this step's own value, if measured."""
  manager.save(
    step,
    args=ocp.args.Composite(
      state=ocp.args.StandardSave(state),
      progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
    ),
    metrics=None if monitored is None else {"monitored": monitored},
  )


def _check(step: int, manager: ocp.CheckpointManager, goal: states.TrainState) -> None:
  saved = manager.item_metadata(step)["state"]
  saved = getattr(saved, "tree", saved)
  have = {p: tuple(m.shape) for p, m in tree.flatten(saved).items()}
  want = {p: tuple(x.shape) for p, x in tree.flatten(goal).items()}
  wrong = [
    f"{path} (checkpoint {have.get(path, 'none')}, model {want.get(path, 'none')})"
    for path in sorted(have.keys() | want.keys())
    if have.get(path) != want.get(path)
  ]
  if wrong:
    raise InputError(
      f"checkpoint {manager.directory}/{step} belongs to another model:"
      f" {'; '.join(wrong[:4])}{'; ...' if len(wrong) > 4 else ''}"
    )


def restore(
  manager: ocp.CheckpointManager,
  goal: states.TrainState,
  *,
  step: int | None = None,
  warn: Callable[[str], None] = print,
) -> tuple[states.TrainState, Progress] | None:
  """Restores `step`, or the newest step that can be read; None where there is none.

  Args:
    goal: abstract state with shardings.
    warn: told about every step that had to be passed over.
  """
  steps = sorted(manager.all_steps(), reverse=True)
  if step is not None:
    if step not in steps:
      raise InputError(
        f"no checkpoint at step {step} in {manager.directory}; there are: {steps[::-1]}"
      )
    steps = [step]
  for candidate in steps:
    try:
      _check(candidate, manager, goal)
      args = ocp.args.Composite(
        state=ocp.args.StandardRestore(goal), progress=ocp.args.JsonRestore()
      )
      restored = manager.restore(candidate, args=args)
    except InputError:
      raise
    except Exception as error:
      # Whatever orbax or tensorstore raises: the folder is damaged.
      reason = (str(error).splitlines() or [repr(error)])[0][:200]
      warn(f"checkpoint at step {candidate} cannot be read ({reason}); going back")
      continue
    # Orbax's buffers may be shared with its own caches: own them before donation.
    state = jax.tree.map(lambda x: x.copy(), restored["state"])
    return state, Progress(**restored["progress"])
  if steps:
    raise InputError(
      f"none of the checkpoints {steps} in {manager.directory} can be read; move that"
      " folder away to start again"
    )
  return None


def best_step(manager: ocp.CheckpointManager) -> int | None:
  """The step with the lowest monitored value, or the latest where none was measured."""
  values = {step: manager.metrics(step) for step in manager.all_steps()}
  measured = {step: m["monitored"] for step, m in values.items() if m}
  return min(measured, key=measured.get) if measured else manager.latest_step()
