"""Loads a run's weights, the base model it started from, and its frozen autoencoder.

Adapters (LoRA) are merged into the weights that they adapt.
"""

import dataclasses
import hashlib
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from gen_jax import build, tree
from gen_jax import experiment as experiments
from gen_jax.data import latents, sources
from gen_jax.runs import workdir as workdirs
from gen_jax.system import files, progress
from gen_jax.tasks import lora
from gen_jax.train import checkpoint, init_from, items
from gen_jax.train import state as states
from gen_jax.types import InputError, Params, PyTree, unknown

AUTOENCODER = workdirs.AUTOENCODER
BASE = "base"  # the item of the weights around which adapters lie

# Kinds of weights, and their names in flags and files.
NAMES = {"ema": "ema", "params": "raw"}


class Weights(NamedTuple):
  """Weights of a checkpoint.

  Attributes:
    params: of the task; adapters are merged into them.
    frozen: what they work in (a latent model's autoencoder and its statistics), or {}.
    step: of the checkpoint.
    kind: 'ema', their moving average, or 'params', as the optimiser left them.
  """

  params: Params
  frozen: PyTree
  step: int
  kind: str

  @property
  def name(self) -> str:
    """The kind as flags and files have it: 'ema' or 'raw'."""
    return NAMES[self.kind]

  def provenance(self) -> dict[str, Any]:
    """Step, kind and hash, for records of what was made by them; equal iff they are.

    `sha256` is of the weights and of the autoencoder that they work in; None in a run
    of several processes, where no process has them all.
    """
    whole = jax.process_count() == 1
    digest = tree.sha256((self.params, self.frozen)) if whole else None
    return {"step": self.step, "weights": self.name, "sha256": digest}


warn = progress.warn


def _restore(restore, workdir: pathlib.Path, which: str, *args, **kwargs) -> Any:
  """What `restore` of `checkpoint` finds under a checkpoint's name.

  Raises:
    InputError: no such checkpoint.
  """
  if which not in ("best", "latest") and not which.isdecimal():
    raise InputError(f"--checkpoint {which!r} must be best, latest or a step")
  with checkpoint.open_manager(workdir, read_only=True) as manager:
    is_best = which == "best" and manager.all_steps()
    found = restore(
      manager,
      *args,
      step=int(which) if which.isdecimal() else None,
      prefer=checkpoint.find_step(manager, which, warn) if is_best else None,
      warn=warn,
      **kwargs,
    )
  if found is None:
    raise InputError(f"{workdir} has no checkpoint yet; train it first")
  return found


def load(
  experiment: experiments.Experiment,
  workdir: pathlib.Path,
  which: str = "best",
  kind: str | None = None,
  autoencoder: pathlib.Path | None = None,
) -> Weights:
  """Restores the weights of an experiment and nothing else.

  Args:
    which: 'best', 'latest' or a step.
    kind: 'ema' ('params' where no average is kept) or 'params'; None is 'ema'.
    autoencoder: another autoencoder's workdir in place of the run's own.

  Raises:
    InputError: no such checkpoint, or the autoencoder that it needs is not there.
  """
  frozen = load_frozen(experiment, workdir, autoencoder)
  learned = load_learned(experiment, workdir, which, kind)
  if experiment.adapter:
    base = lora.Frozen(load_base(workdir, experiment).params, frozen)
    adapted = lora.Adapted(experiment.task, experiment.adapter)
    merged = jax.jit(adapted.merged)(learned.params, base)
    learned = learned._replace(params=merged)
  return learned._replace(frozen=frozen)


def load_learned(
  experiment: experiments.Experiment,
  workdir: pathlib.Path,
  which: str = "best",
  kind: str | None = None,
) -> Weights:
  """What a run has trained, all weights or adapters alone, as they were saved.

  Raises:
    InputError: no such checkpoint.
  """
  if kind not in (None, *NAMES, *NAMES.values()):
    raise unknown("--weights", kind, dict.fromkeys([*NAMES.values(), *NAMES]))
  has_average = experiment.train.ema_decay is not None
  kind = "ema" if kind in (None, "ema") and has_average else "params"
  abstract, restore = experiment.abstract_learned(), checkpoint.restore_weights
  params, step = _restore(restore, workdir, which, abstract, part=kind)
  return Weights(params, {}, step, kind)


def load_state(
  experiment: experiments.Experiment, workdir: pathlib.Path, which: str = "latest"
) -> states.TrainState:
  """Restores all that a checkpoint holds.

  Raises:
    InputError: no such checkpoint.
  """
  optimizer, _ = experiment.optimizer(1)
  abstract = experiment.abstract_state(optimizer)
  if workdirs.is_imported(workdir):
    abstract = dataclasses.replace(abstract, opt_state=(), ema=None)
  return _restore(checkpoint.restore, workdir, which, abstract)[0]


def load_base(
  workdir: pathlib.Path, experiment: experiments.Experiment
) -> init_from.Loaded:
  """The weights that `init_from` names; the first time, notes which.

  A run with adapters keeps them as an item of its own. Any other, and one that an
  earlier version began, has init_from.json: from then on it is that step and those
  bytes, or an error.

  Raises:
    InputError: they cannot be read, or are no longer the ones that were noted.
  """
  path, source = workdir / "init_from.json", experiment.source
  noted = files.read_sealed(path) if path.exists() else None
  assert source is not None  # a run that starts from weights
  if noted is not None:
    step, kind, digest = (
      files.field(noted, name, str(path)) for name in ("step", "weights", "sha256")
    )
    source = dataclasses.replace(source, checkpoint=str(step), weights=kind)
  elif experiment.adapter:
    kept = items.restore(workdir, BASE, experiment.abstract_params())
    if kept is not None:
      names = ("step", "weights", "sha256")
      return init_from.Loaded(kept[0], **{name: kept[1][name] for name in names})
  loaded = _load(source, experiment)
  if noted is None:
    noted = {"step": loaded.step, "weights": loaded.weights, "sha256": loaded.sha256}
    noted = {"workdir": str(source.directory.absolute()), **noted}
    if experiment.adapter:
      items.save(workdir, BASE, loaded.params, noted)
    else:
      workdirs.write_sealed(path, noted)
  elif digest != loaded.sha256:
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
  config = workdirs.read_config(home) if (home / "config.json").exists() else {}
  if not config.get("adapter"):
    return init_from.load(source, experiment.checkpoint_layouts(), warn)
  task, start, adapter = (
    build.build(name, config[name], tokenizer=None, caption_length=None)
    for name in ("task", "init_from", "adapter")
  )
  other = dataclasses.replace(experiment, task=task, source=start, adapter=adapter)
  abstract = other.abstract_learned()
  as_it_is = init_from.CheckpointLayout(abstract, lambda params: params)
  adapters, base = init_from.load(source, [as_it_is], warn), load_base(home, other)
  frozen = lora.Frozen(base.params, {})
  merged = jax.jit(lora.Adapted(task, adapter).merged)(adapters.params, frozen)
  parts = f"{base.sha256} {adapters.sha256} {adapter.scale}"
  return dataclasses.replace(
    adapters,
    params=init_from.fit(merged, experiment.checkpoint_layouts(), str(home)),
    sha256=hashlib.sha256(parts.encode()).hexdigest(),
  )


def load_frozen(
  experiment: experiments.Experiment,
  workdir: pathlib.Path,
  autoencoder: pathlib.Path | None = None,
) -> PyTree:
  """The autoencoder that a task works in, kept as an item on first use; {} without one.

  Args:
    autoencoder: another one's workdir, in place of the one that `workdir` holds.

  Raises:
    InputError: there is none, its latents have not been measured, or the codes on disk
      are of another one.
  """
  if "autoencoder" not in experiment.frozen:
    return experiment.frozen
  home = autoencoder or workdir
  if autoencoder or workdirs.has_autoencoder(workdir):
    weights, statistics = _autoencoder(home, experiment)
  else:
    named = experiment.config["task"]["codec"].get("workdir")
    if named is None:
      raise InputError("task.codec.workdir is needed: a trained autoencoder's folder")
    home = files.path(named, "task.codec.workdir")
    weights, statistics = _autoencoder(home, experiment)
    keep_autoencoder(workdir, experiment.config, weights, statistics)
  data: Any = experiment.data  # of images or of their codes
  source = data.source
  if "statistics" in sources.gives(source) and not autoencoder:
    made_by = source.statistics()["sha256"]
    if made_by != statistics["sha256"]:
      raise InputError(
        f"the latent cache {source.directory!r} was made by another autoencoder"
        f" (SHA-256 {made_by[:12]}, here {statistics['sha256'][:12]}); encode the data"
        " again"
      )
  moments = {name: np.float32(statistics[name]) for name in ("mean", "std")}
  moments = jax.device_put(moments, experiment.layout.replicated)
  return {"autoencoder": weights, **moments}


def keep_autoencoder(
  workdir: pathlib.Path,
  config: build.Config,
  weights: PyTree,
  statistics: dict[str, Any],
) -> None:
  """Writes an autoencoder, once, as an item of the run that works in it.

  Args:
    config: of the run.
    statistics: of the latents, and the weights' SHA-256.
  """
  lists = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in statistics.items()}
  block = config["task"]["codec"]["autoencoder"]
  items.save(workdir, AUTOENCODER, weights, {**lists, "autoencoder": block})


def with_autoencoder(
  experiment: experiments.Experiment, home: pathlib.Path
) -> experiments.Experiment:
  """The experiment with another autoencoder's workdir in place of its own.

  Only who trained them knows whether both mean the same by their latents; TAESD does,
  to those of Stable Diffusion 1 and 2.

  Raises:
    InputError: it is none, or its latents are of another shape.
  """
  config = experiment.config
  task: Any = experiment.task
  data: Any = experiment.data
  block = workdirs.read_config(home)["task"].get("autoencoder")
  if block is None or "autoencoder" not in experiment.frozen:
    raise InputError(
      f"--autoencoder {home} is for models of latents, and must be an autoencoder's"
      " workdir"
    )
  codec = build.build("codec", {**config["task"]["codec"], "autoencoder": block})
  image = (data.image_size, data.image_size, data.channels)
  wanted, found = (c.shape(image) for c in (task.codec, codec))
  if found != wanted:
    raise InputError(
      f"--autoencoder {home} makes latents {list(found)} of images {list(image)},"
      f" the model draws {list(wanted)}"
    )
  return experiment.around(dataclasses.replace(task, codec=codec))


def _autoencoder(
  home: pathlib.Path, experiment: experiments.Experiment
) -> tuple[PyTree, dict[str, Any]]:
  """Weights of an autoencoder, and what is known of them and of their latents.

  Args:
    home: of a run that works in it, or its own workdir.
  """
  abstract = experiment.frozen["autoencoder"]
  if kept := items.restore(home, AUTOENCODER, abstract):
    return kept
  if workdirs.has_autoencoder(home):
    home = home / AUTOENCODER  # earlier versions kept a workdir in a workdir
  workdirs.read_config(home)
  statistics = latents.read_statistics(home)
  if statistics is None:
    raise InputError(
      f"the latents of {home} have not been measured: gen-jax encode --workdir {home}"
    )
  step = str(statistics["step"])
  part = "ema" if statistics["weights"] == "ema" else "params"
  restore = checkpoint.restore_weights
  weights, _ = _restore(restore, home, step, abstract, part=f"{part}/autoencoder")
  if (found := tree.sha256(weights)) != statistics["sha256"]:
    raise InputError(
      f"{home / latents.NAME} is of other weights than those of step"
      f" {step} (SHA-256 {found[:12]}); measure again: gen-jax encode"
    )
  return weights, statistics
