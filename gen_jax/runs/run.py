"""A run: a workdir opened, or one that is about to begin; the library's front door."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gen_jax import build, families
from gen_jax import experiment as experiments
from gen_jax.build import config_files
from gen_jax.build import overrides as overriding
from gen_jax.data import kept
from gen_jax.inference import drawing, image_generator
from gen_jax.runs import bill, lease, training
from gen_jax.runs import weights as weighing
from gen_jax.runs import workdir as workdirs
from gen_jax.system import copies, files, signals
from gen_jax.train import checkpoint, evaluators, writers
from gen_jax.train import state as states
from gen_jax.types import InputError

Overrides = Mapping[str, Any] | Iterable[tuple[str, Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """A config and the folder of its run.

  `open_run` and `fresh` make them. Nothing is read before it is asked for.

  Attributes:
    workdir: the folder; None: nothing is kept, for shapes and costs alone.
    config: every value of it, defaults too, as config.json holds them.
    autoencoder: another one's workdir, for the same latents, in place of the run's own.
  """

  workdir: pathlib.Path | None
  config: dict[str, Any]
  autoencoder: pathlib.Path | None = None
  _loaded: dict = dataclasses.field(default_factory=dict, repr=False)  # last weights
  _sampled: dict = dataclasses.field(default_factory=dict, init=False, repr=False)

  @property
  def home(self) -> pathlib.Path:
    """The folder; InputError of a run that keeps nothing."""
    if self.workdir is None:
      raise InputError("this run has no workdir: nothing of it is kept")
    return self.workdir

  @functools.cached_property
  def experiment(self) -> experiments.Experiment:
    """What the config stands for, built once.

    A run that has begun has the tokenizer or the classes that its prompts need.
    """
    classes = self.workdir and self.workdir / kept.CLASS_NAMES
    has_begun = self.tokenizer_folder or (classes and classes.exists())
    home = self.workdir if has_begun else None
    made = experiments.make(self.config, home)
    other = self.autoencoder
    return weighing.with_autoencoder(made, other) if other else made

  @property
  def family(self) -> families.Family:
    """What only text, images or autoencoders know; builds nothing."""
    return families.of(self.config)

  @functools.cached_property
  def generator(self) -> families.Generator:
    """Draws by the config's sampling block; compiled once."""
    return self.experiment.generator()

  @property
  def tokenizer_folder(self) -> pathlib.Path | None:
    """Where the tokenizer's files are; None before training or without one."""
    folder = self.workdir and self.workdir / "tokenizer"
    return folder if folder and copies.is_whole(folder) else None

  @property
  def is_imported(self) -> bool:
    """Whether the weights came from elsewhere."""
    return workdirs.is_imported(self.home)

  def origin(self) -> dict[str, Any]:
    """Where imported weights came from; {} of a trained run."""
    return files.read_sealed(self.home / "import.json") if self.is_imported else {}

  def base_origin(self) -> dict[str, Any]:
    """`origin` of the weights that it started from, else its own; {} if unknown."""
    start = self.experiment.source
    path = start and start.directory / "import.json"
    return files.read_sealed(path) if path and path.exists() else self.origin()

  def configured(self, overrides: Overrides) -> "Run":
    """The run with other values, by dotted key, of what does not change the model.

    Raises:
      InputError: an unknown key (names the nearest), or a value that cannot be.
    """
    pairs = _pairs(overrides)
    config = build.resolved(overriding.apply(build.explicit(self.config), pairs))
    is_same = all(key.split(".")[0] == "sampling" for key, _ in pairs)
    kept = self._loaded if is_same else {}  # weights on another mesh are others
    return dataclasses.replace(self, config=config, _loaded=kept)

  def sampled(self, **sampling: Any) -> "Run":
    """The run with other values of its sampling block; see `configured`.

    Raises:
      InputError: also one that another value switches off.
    """
    if not sampling:
      return self
    key = repr(sampling)
    if key not in self._sampled:
      made = self.configured({f"sampling.{k}": v for k, v in sampling.items()})
      made.check_idle(sampling)
      self._sampled.clear()  # the last one stays compiled
      self._sampled[key] = made
    return self._sampled[key]

  def alone(self, what: str) -> contextlib.AbstractContextManager[None]:
    """Holds a lease on the work named so in this workdir, see `lease.hold`."""
    return lease.hold(self.home, f"{what}.lease")

  def check_idle(self, given: Iterable[str]) -> None:
    """Raises InputError for a setting that the config switches off."""
    made = self.experiment
    drawing.check_idle([*given], self.family.idle(made.task, made.sampling))

  def check_edit(self, how: drawing.Edit, sampling: Mapping[str, Any]) -> None:
    """Raises InputError for a model that draws no images, and see `Edit.check`."""
    if not self.family.draws:
      raise InputError(f"{self.workdir} holds no model that draws images")
    how.check(sampling)

  def require_tokenizer(self) -> None:
    """Raises InputError where the run needs a tokenizer and has none."""
    if self.tokenizer_folder or self.config["data"].get("tokenizer") is None:
      return
    if self.is_imported:
      raise InputError(
        f"{self.workdir} was imported without a tokenizer: put its files"
        f" (tokenizer.json) into {self.home / 'tokenizer'}"
      )
    raise InputError(
      f"{self.workdir} has no checkpoint yet (not even a tokenizer); train it first"
    )

  def weights(
    self, which: str | int = "best", kind: str | None = None
  ) -> weighing.Weights:
    """Weights of a checkpoint; the last ones loaded stay in memory.

    Args:
      which: 'best' by the monitored metric, 'latest', or a step.
      kind: 'ema' or 'params'; None: the moving average where one is kept.

    Raises:
      InputError: no such checkpoint, or one that cannot be read.
    """
    key = (str(which), kind, workdirs.steps(self.home), self.autoencoder)
    if key not in self._loaded:
      self._loaded.clear()
      args = (self.experiment, self.home, str(which), kind, self.autoencoder)
      self._loaded[key] = weighing.load(*args)
    return self._loaded[key]

  def adapter_weights(self, which: str | int, kind: str | None) -> weighing.Weights:
    """The adapters of a checkpoint, without their base.

    Raises:
      InputError: the run has none.
    """
    if self.experiment.adapter is None:
      raise InputError(
        f"{self.workdir} has no adapter: it was trained without --config.adapter.name="
        "lora; export all its weights, without --adapter"
      )
    return weighing.load_learned(self.experiment, self.home, str(which), kind)

  def image_weights(self, which: str | int, kind: str | None) -> weighing.Weights:
    """`weights` of a model of images.

    Raises:
      InputError: it reads captions, and has no tokenizer.
    """
    self.require_tokenizer()
    return self.weights(which, kind)

  def state(self, which: str | int = "latest") -> states.TrainState:
    """All that a checkpoint holds: parameters, average, optimiser, key and step."""
    return weighing.load_state(self.experiment, self.home, str(which))

  def checkpoints(self) -> tuple[list[int], int | None, list[str]]:
    """Steps that have one, the best of them, and what was said in finding it."""
    told: list[str] = []
    with checkpoint.open_manager(self.home, read_only=True) as manager:
      best = checkpoint.find_step(manager, "best", told.append)
      return sorted(manager.all_steps()), best, told

  def metrics(self) -> list[dict[str, float]]:
    """The rows of metrics.jsonl, in order; each has its step."""
    return writers.read_metrics(self.home)

  def cost(self) -> dict[str, Any]:
    """What its training has cost so far; see `bill.so_far`."""
    return bill.so_far(self.home)

  def evaluation(self) -> dict[str, Any] | None:
    """What the last `gen-jax evaluate` has written, None without one."""
    path = workdirs.evaluation(self.home)
    return files.read_json(path) if path.exists() else None

  def train(self, num_steps: int | None = None) -> dict[str, Any]:
    """Trains to the end, from the last checkpoint if there is one.

    An interrupt saves and stops, as in `gen-jax train`; the next call goes on.

    Args:
      num_steps: in place of the config's train.num_steps; what a finished run is
        lengthened by.

    Returns:
      workdir, reason ('finished', 'patience' or 'interrupted'), step, and the last
      value of each metric.

    Raises:
      InputError: another run is at work there, or what cannot be trained.
    """
    run = self
    if num_steps is not None:
      run = self.configured({"train.num_steps": num_steps})
    self._loaded.clear()
    try:
      with signals.handling():
        return training.train(run.config, run.home, training.Alone())
    finally:
      for name in ("experiment", "generator"):  # from now on with a tokenizer
        self.__dict__.pop(name, None)
      self._sampled.clear()

  def generate(
    self,
    prompt: str | Sequence[str] = "",
    num: int = 1,
    seed: int = 0,
    *,
    negative: str = "",
    which: str | int = "best",
    kind: str | None = None,
    **sampling: Any,
  ) -> list[str] | np.ndarray:
    """What the model gives for prompts, as `gen-jax sample` does.

    Args:
      prompt: one or several: a caption, the name or number of a class, or "" for
        none, which is all that an unconditional model takes.
      num: samples for each prompt.
      seed: sample i of a prompt depends on (seed, i).
      negative: the negative prompt, of images.
      which, kind: see `weights`.
      sampling: values of the config's sampling block, `temperature` say.

    Returns:
      Continuations, prompt by prompt; of an image model uint8 [N, H, W, C].

    Raises:
      InputError: an unknown name, a value that cannot be, or a prompt too long.
    """
    drawing.check(num, seed)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    self.require_tokenizer()
    run = self.sampled(**sampling)
    given = {"negative": negative, "prompt": any(prompts)}
    run.check_idle(name for name in given if given[name])
    chosen = run.weights(which, kind)
    return self.family.generate(run.generator, chosen, prompts, num, seed, negative)

  def edit(
    self,
    image: np.ndarray | str | os.PathLike,
    prompt: str | None = None,
    mask: np.ndarray | str | os.PathLike | None = None,
    strength: float | None = None,
    num: int = 1,
    seed: int = 0,
    *,
    outpaint: str | None = None,
    invert: str | None = None,
    vary: float = 0.0,
    negative: str = "",
    resize: int | None = None,
    which: str | int = "best",
    kind: str | None = None,
    **sampling: Any,
  ) -> np.ndarray:
    """uint8 [num, H, W, C]: an image edited for a prompt, as `gen-jax edit` does.

    Args:
      image, ..., resize: see `drawing.Edit`.
      which, kind: see `weights`.
      sampling: values of the config's sampling block.

    Raises:
      InputError: a model that draws no images, or an image that does not fit.
    """
    given = (prompt, mask, outpaint, strength, invert, vary, negative, resize)
    how = drawing.Edit(image, *given)
    drawing.check(num, seed)
    self.check_edit(how, sampling)
    pixels = how.pixels(self.config["data"]["channels"])
    self.require_tokenizer()
    run = self.sampled(**sampling)
    generator = run.generator
    assert isinstance(generator, image_generator.ImageGenerator)  # see check_edit
    how.check_task(generator.task, sampling)
    return how.plan(generator, run.weights(which, kind), pixels, num, seed).all()

  def evaluate(
    self, which: str | int = "best", kind: str | None = None
  ) -> dict[str, float]:
    """The numbers of every evaluator of the config, as `gen-jax evaluate` has them."""
    self.require_tokenizer()
    chosen = self.weights(which, kind)
    found: dict[str, float] = {}
    for evaluator in self.experiment.evaluators():
      found |= numbers(evaluator, chosen)
    return found


def numbers(
  evaluator: evaluators.Evaluator,
  weights: weighing.Weights,
  keep: Callable[[str, str], Any] = lambda name, text: None,
) -> dict[str, float]:
  """What an evaluator measures, without its images; its texts go to `keep`, by name."""
  found = dict(evaluator(weights.params, weights.frozen))
  for name, value in found.items():
    if isinstance(value, str):
      keep(name, value)
  return {name: value for name, value in found.items() if isinstance(value, float)}


def open_run(workdir: str | os.PathLike, overrides: Overrides = ()) -> Run:
  """The run of a folder; see `gen_jax.open`."""
  home = files.path(os.fspath(workdir), "workdir")
  return Run(home, workdirs.read_config(home, _pairs(overrides)))


def fresh(
  config: Any, workdir: str | os.PathLike | None, overrides: Overrides = ()
) -> Run:
  """The run of a config, which its folder, if there is one already, may not be of.

  Args:
    config: `NAME[:ARG]`, another run's workdir, a ConfigDict or a dict.
    workdir: None: nothing is kept.

  Raises:
    InputError: a config that cannot be read, or an override that cannot be.
  """
  home = None if workdir is None else files.path(os.fspath(workdir), "workdir")
  pairs = _pairs(overrides)
  config = workdirs.inherit_task(_plain(config), pairs, home)
  return Run(home, build.resolved(overriding.apply(config, pairs)))


def new(config: Any, workdir: str | os.PathLike, overrides: Overrides = ()) -> Run:
  """`fresh`, refused where the folder is another config's; the same config resumes.

  Raises:
    InputError: see `fresh`; a bad config, or a folder of another one.
  """
  run = fresh(config, workdir, overrides)
  build.check_config(run.config)
  workdirs.check_owner(run.home, run.config)
  return run


def _plain(config: Any) -> dict[str, Any]:
  """A config as a plain dict: that of a workdir, or see `config_files.plain`."""
  if isinstance(config, str | os.PathLike):
    other = files.path(config, "--config")
    if (other / "config.json").is_file():
      return workdirs.read_config(other)
  return config_files.plain(config)


def _pairs(overrides: Overrides) -> list[tuple[str, Any]]:
  return [*(overrides.items() if isinstance(overrides, Mapping) else overrides)]
