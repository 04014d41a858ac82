"""A workdir: config.json, run.json, tokenizer.json, metrics.jsonl, checkpoints/, ..."""

import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import subprocess
from typing import Any

from gen_jax import build
from gen_jax.train import checkpoint
from gen_jax.train import state as states
from gen_jax.types import InputError, PyTree

# What may differ when a workdir is opened again: it does not change what is learned.
MAY_CHANGE = ("mesh", "sampling", "train.log_every", "train.keep")
_PACKAGES = ("gen_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(config, dict) or not config:
    return {prefix: config}
  items = {}
  for key, value in config.items():
    items.update(_flat(value, f"{prefix}.{key}" if prefix else key))
  return items


def claim(workdir: pathlib.Path, config: dict[str, Any]) -> None:
  """Writes config.json and run.json, or checks that the config there is this one.

  Raises:
    InputError: the workdir belongs to another config; says what differs.
  """
  path = workdir / "config.json"
  config = json.loads(json.dumps(config))  # as it will be read: tuples are lists
  if path.exists():
    old, new = _flat(read_config(workdir)), _flat(config)
    differ = [
      f"{key} ({old.get(key, 'absent')!r} there, {new.get(key, 'absent')!r} now)"
      for key in sorted(old.keys() | new.keys())
      if old.get(key, KeyError) != new.get(key, KeyError)
      and not any(f"{key}.".startswith(f"{may}.") for may in MAY_CHANGE)
    ]
    if differ:
      raise InputError(
        f"workdir {workdir} belongs to another config: {'; '.join(differ)}; take"
        " another --workdir, or give the same values"
      )
  workdir.mkdir(parents=True, exist_ok=True)
  run = {
    "code_revision": _revision(),
    "python": platform.python_version(),
    "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
  }
  for name, value in (("config.json", config), ("run.json", run)):
    partial = workdir / f"{name}.partial"
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(workdir / name)


def _revision() -> str | None:
  """The commit that this code runs from, or None outside a checkout."""
  root = pathlib.Path(__file__).parent
  command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
  except (OSError, subprocess.TimeoutExpired):
    return None
  return done.stdout.strip() or None


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
  """The config of a workdir.

  Raises:
    InputError: not a workdir.
  """
  path = workdir / "config.json"
  if not path.exists():
    raise InputError(
      f"{workdir} is not a workdir: it has no config.json; `gen-jax train --workdir"
      f" {workdir}` makes one"
    )
  try:
    return json.loads(path.read_text())
  except json.JSONDecodeError as error:
    raise InputError(f"{path} is not JSON: {error}") from None


@dataclasses.dataclass(frozen=True)
class Opened:
  """A trained model: the experiment, its state and the weights asked for."""

  experiment: build.Experiment
  state: states.TrainState
  weights: PyTree
  step: int
  kind: str  # 'ema' or 'raw'


def open_trained(
  workdir: pathlib.Path,
  config: dict[str, Any],
  which: str = "best",
  weights: str = "ema",
) -> Opened:
  """Restores a workdir's model.

  Args:
    config: the workdir's, perhaps with another `sampling` or `mesh`.
    which: 'best', 'latest' or a step.
    weights: 'ema' (raw where no average is kept) or 'raw'.

  Raises:
    InputError: no such checkpoint.
  """
  experiment = build.experiment(config, workdir)
  optimizer, _ = experiment.optimizer(1)
  goal = experiment.abstract_state(optimizer)
  with checkpoint.open_manager(workdir, read_only=True) as manager:
    if which == "latest":
      step = None
    elif which == "best":
      step = checkpoint.best_step(manager)
    elif which.isdigit():
      step = int(which)
    else:
      raise InputError(f"--checkpoint {which!r} must be best, latest or a step")
    restored = checkpoint.restore(manager, goal, step=step)
  if restored is None:
    raise InputError(f"{workdir} has no checkpoint yet; train it first")
  state, _ = restored
  if weights not in ("ema", "raw"):
    raise InputError(f"--weights {weights!r} must be ema or raw")
  kind = "ema" if weights == "ema" and state.ema is not None else "raw"
  chosen = state.ema if kind == "ema" else state.params
  return Opened(experiment, state, chosen, int(state.step), kind)


def add_arguments(parser) -> None:
  """Flags of every command that opens a trained model."""
  parser.add_argument("--workdir", required=True, help="folder of a training run")
  parser.add_argument(
    "--checkpoint", default="best", help="best (default), latest, or a step"
  )
  parser.add_argument(
    "--weights", default="ema", help="ema (default; raw where none is kept) or raw"
  )
