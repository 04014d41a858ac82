"""A workdir: config.json, run.json, tokenizer/, metrics.jsonl, checkpoints/, ..."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import optax

from gen_jax import experiment as experiments
from gen_jax.cli import config_args
from gen_jax.train import checkpoint, init_from
from gen_jax.train import state as states
from gen_jax.types import InputError, PyTree, unknown

# What may differ when a workdir is opened again: it does not change what is learned.
MAY_CHANGE = (
  "mesh",
  "sampling",
  "train.log_every",
  "train.keep",
  "init_from.workdir",  # it may move: `load_base` knows its weights by their hash
)
_PACKAGES = ("gen_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")


def _may_change(key: str) -> bool:
  return any(f"{key}.".startswith(f"{may}.") for may in MAY_CHANGE)


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(config, dict) or not config:
    return {prefix: config}
  items = {}
  for key, value in config.items():
    items.update(_flat(value, f"{prefix}.{key}" if prefix else key))
  return items


@contextlib.contextmanager
def claim(workdir: pathlib.Path, config: dict[str, Any]) -> Iterator[None]:
  """Writes config.json and run.json, or checks that the config there is this one.

  Should the body fail, whatever was not there before is taken away again.

  Raises:
    InputError: the workdir belongs to another config (says what differs), or cannot be
      written to.
  """
  config = json.loads(json.dumps(config))  # as it will be read: tuples are lists
  _check_owner(workdir, config)
  run = {
    "code_revision": _revision(),
    "python": platform.python_version(),
    "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
  }
  folders = ("tokenizer", "tokenizer.partial")
  names = ("config.json", "run.json", "init_from.json", *folders, "checkpoints")
  paths = [workdir / name for name in names]
  new = [path for path in (*paths, workdir, *workdir.parents) if not path.exists()]
  try:
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      write_json(workdir / "config.json", config)
      write_json(workdir / "run.json", run)
    except OSError as error:
      raise InputError(
        f"cannot write to --workdir {workdir}: {error.strerror}; take another one"
      ) from None
    yield
  except BaseException:
    for path in new:
      with contextlib.suppress(OSError):  # a folder with something else in it stays
        if path.name in folders and path.parent == workdir:
          shutil.rmtree(path)
        else:
          path.rmdir() if path.is_dir() else path.unlink()
    raise


def _check_owner(workdir: pathlib.Path, config: dict[str, Any]) -> None:
  if not (workdir / "config.json").exists():
    for name in ("tokenizer", "checkpoints"):
      if (workdir / name).exists():
        raise InputError(
          f"{workdir} has {name} but no config.json: it is not a workdir of this"
          " program; take another --workdir"
        )
    return
  old, new = _flat(read_config(workdir)), _flat(config)
  differ = [
    f"{key} ({old.get(key, 'absent')!r} there, {new.get(key, 'absent')!r} now)"
    for key in sorted(old.keys() | new.keys())
    if old.get(key, KeyError) != new.get(key, KeyError) and not _may_change(key)
  ]
  if differ:
    more = f" and {len(differ) - 8} more" if len(differ) > 8 else ""
    raise InputError(
      f"workdir {workdir} belongs to another config: {'; '.join(differ[:8])}{more};"
      " take another --workdir, or give the same values"
    )


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a JSON file, whole or not at all."""
  partial = path.with_name(f"{path.name}.partial")
  try:
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(path)
  except OSError:
    partial.unlink(missing_ok=True)
    raise


def _revision() -> str | None:
  """The commit that this code runs from, or None outside a checkout."""
  root = pathlib.Path(__file__).parent
  command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
  except (OSError, subprocess.TimeoutExpired):
    return None
  return done.stdout.strip() or None


def read_config(
  workdir: pathlib.Path, overrides: config_args.Overrides = ()
) -> dict[str, Any]:
  """The config of a workdir, with overrides of what may change (its mesh, say).

  Raises:
    InputError: not a workdir, or an override of what may not change.
  """
  for key, _ in overrides:
    if not _may_change(key):
      raise InputError(
        f"config key {key!r} belongs to the trained model; what may change is"
        f" {', '.join(MAY_CHANGE)}"
      )
  path = workdir / "config.json"
  if not path.exists():
    raise InputError(
      f"{workdir} is not a workdir: it has no config.json; `gen-jax train --workdir"
      f" {workdir}` makes one"
    )
  try:
    config = json.loads(path.read_text())
  except ValueError as error:  # not JSON, or not even text
    raise InputError(
      f"{path} is damaged ({error}); write it anew from the config, or take another"
      " workdir"
    ) from None
  try:
    experiments.check_config(config)
  except InputError as error:
    raise InputError(f"{path}: {error}") from None
  return config_args.apply(config, overrides)


def inherit_task(
  config: dict[str, Any], overrides: config_args.Overrides, workdir: pathlib.Path | None
) -> dict[str, Any]:
  """A config whose task is None gets that of the model it starts from.

  Args:
    workdir: of the run itself: where it has begun already, its own task is taken.

  Raises:
    InputError: there is no such model.
  """
  if config.get("task", {}) is not None:
    return config
  own = [(key, text) for key, text in overrides if key.split(".")[0] == "init_from"]
  start = config_args.apply(config, own).get("init_from") or {}
  home = workdir
  if home is None or not (home / "config.json").exists():
    if not start.get("workdir"):
      raise InputError("task=None needs a model: set init_from.workdir")
    home = pathlib.Path(start["workdir"]).expanduser()
    if not (home / "config.json").exists():
      raise InputError(
        f"init_from.workdir={start['workdir']} is not a workdir: name the folder of a"
        " trained or imported model"
      )
  return {**config, "task": read_config(home)["task"]}


def load_base(
  workdir: pathlib.Path, experiment: experiments.Experiment
) -> init_from.Loaded:
  """The weights that `init_from` names; the first time, notes which in init_from.json.

  From then on it is that step and those bytes, or an error.

  Raises:
    InputError: they cannot be read, or are no longer the ones that were noted.
  """
  path, source = workdir / "init_from.json", experiment.source
  noted = json.loads(path.read_text()) if path.exists() else None
  if noted:
    source = dataclasses.replace(
      source, checkpoint=str(noted["step"]), weights=noted["weights"]
    )
  loaded = _load(source, experiment)
  if noted is None:
    noted = {"step": loaded.step, "weights": loaded.weights, "sha256": loaded.sha256}
    write_json(path, {"workdir": str(source.directory.absolute()), **noted})
  elif noted["sha256"] != loaded.sha256:
    raise InputError(
      f"the weights in init_from.workdir={source.workdir} are not those that {workdir}"
      f" started from (SHA-256 in {path}); put them back, or take another --workdir"
    )
  return loaded


def _load(
  source: init_from.InitFrom, experiment: experiments.Experiment
) -> init_from.Loaded:
  """The weights of another workdir; of one with adapters, its own base with them.

  A merge is known by the hash of its parts: its last bits may depend on the mesh.
  """
  home = source.directory
  config = read_config(home) if (home / "config.json").exists() else {}
  if not config.get("adapter"):
    return init_from.load(source, experiment.forms())
  here = {"mesh": experiment.config["mesh"]}
  here["data"] = {**config["data"], "batch_size": experiment.data.batch_size}
  here["train"] = {**config["train"], "num_microbatches": 1}
  other = experiments.make({**config, **here}, None)
  goal = other.abstract_state(optax.identity()).params
  adapters = init_from.load(source, [init_from.Form(goal, lambda params: params)])
  base = load_base(home, other)
  merged = jax.jit(other.learner.merged)(
    adapters.params, other.learner_frozen(base.params)
  )
  parts = f"{base.sha256} {adapters.sha256} {other.adapter.scale}"
  return dataclasses.replace(
    adapters,
    params=init_from.fit(merged, experiment.forms(), str(home)),
    sha256=hashlib.sha256(parts.encode()).hexdigest(),
  )


@dataclasses.dataclass(frozen=True)
class Opened:
  """A trained model: the experiment, and the weights asked for.

  Adapters are merged into them.
  """

  experiment: experiments.Experiment
  weights: PyTree
  step: int
  kind: str  # 'ema' or 'raw'


def is_imported(workdir: pathlib.Path) -> bool:
  """Whether a workdir holds weights that came from elsewhere, and nothing else."""
  return (workdir / "import.json").exists()


def _which(which: str, manager) -> dict[str, Any]:
  """What a checkpoint's name means to `checkpoint.restore`."""
  return {
    "step": int(which) if which.isdecimal() else None,
    "prefer": checkpoint.best_step(manager) if which == "best" else None,
    "warn": lambda text: print(f"gen-jax: {text}", file=sys.stderr),
  }


def _check_which(which: str) -> None:
  if which not in ("best", "latest") and not which.isdecimal():
    raise InputError(f"--checkpoint {which!r} must be best, latest or a step")


def open_trained(
  workdir: pathlib.Path,
  config: dict[str, Any],
  which: str = "best",
  weights: str = "ema",
) -> Opened:
  """Restores a workdir's model, and its tokenizer.

  Args:
    config: the workdir's, perhaps with another `sampling` or `mesh`.
    which: 'best', 'latest' or a step.
    weights: 'ema' (raw where no average is kept) or 'raw'.

  Raises:
    InputError: no such checkpoint, or no tokenizer.
  """
  _check_which(which)
  if not (workdir / "tokenizer").exists():
    if is_imported(workdir):
      raise InputError(
        f"{workdir} was imported without a tokenizer: put its files (tokenizer.json)"
        f" into {workdir / 'tokenizer'}"
      )
    raise InputError(
      f"{workdir} has no checkpoint yet (not even a tokenizer); train it first"
    )
  return open_weights(experiments.make(config, workdir), workdir, which, weights)


def open_weights(
  experiment: experiments.Experiment,
  workdir: pathlib.Path,
  which: str = "best",
  weights: str = "ema",
) -> Opened:
  """Restores the weights of an experiment and nothing else; see `open_trained`."""
  _check_which(which)
  if weights not in ("ema", "raw"):
    raise unknown("--weights", weights, ("ema", "raw"))
  has_average = experiment.train.ema_decay is not None
  kind = "ema" if weights == "ema" and has_average else "raw"
  goal = experiment.abstract_state(optax.identity()).params
  with checkpoint.open_manager(workdir, read_only=True) as manager:
    restored = checkpoint.restore_weights(
      manager,
      goal,
      part="ema" if kind == "ema" else "params",
      **_which(which, manager),
    )
  if restored is None:
    raise InputError(f"{workdir} has no checkpoint yet; train it first")
  chosen, step = restored
  if experiment.adapter:
    frozen = experiment.learner_frozen(load_base(workdir, experiment).params)
    chosen = jax.jit(experiment.learner.merged)(chosen, frozen)
  return Opened(experiment, chosen, step, kind)


def open_state(
  workdir: pathlib.Path, config: dict[str, Any], which: str = "latest"
) -> states.TrainState:
  """Restores all that a checkpoint holds.

  Raises:
    InputError: no such checkpoint.
  """
  _check_which(which)
  home = workdir if (workdir / "tokenizer").exists() else None
  experiment = experiments.make(config, home)
  optimizer, _ = experiment.optimizer(1)
  goal = experiment.abstract_state(optimizer)
  if is_imported(workdir):
    goal = dataclasses.replace(goal, opt_state=(), ema=None)
  with checkpoint.open_manager(workdir, read_only=True) as manager:
    restored = checkpoint.restore(manager, goal, **_which(which, manager))
  if restored is None:
    raise InputError(f"{workdir} has no checkpoint yet; train it first")
  return restored[0]


def add_arguments(parser) -> None:
  """Flags of every command that opens a trained model."""
  parser.add_argument("--workdir", required=True, help="folder of a training run")
  parser.add_argument(
    "--checkpoint", default="best", help="best (default), latest, or a step"
  )
  parser.add_argument(
    "--weights", default="ema", help="ema (default; raw where none is kept) or raw"
  )
