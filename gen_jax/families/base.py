"""A family as a value: all that only text, images or autoencoders know."""

import dataclasses
import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn, Protocol, TypeAlias

import jax
import numpy as np

from gen_jax import build, sharding
from gen_jax.convert import matching
from gen_jax.data import sources
from gen_jax.diffusion import codec as codecs
from gen_jax.evaluation import image_sets, scoring
from gen_jax.inference import drawing, image_generator, text_generator
from gen_jax.inference import slots as slots_
from gen_jax.train import init_from
from gen_jax.types import Array, InputError, Params, PyTree

# Each family's own, which `check_fit` has made sure of.
Task: TypeAlias = Any
Data: TypeAlias = Any
Flags = Mapping[str, Mapping[str, Any]]  # {name: keywords of argparse}
Generator = text_generator.TextGenerator | image_generator.ImageGenerator
CountFlops = Callable[..., float]  # `flops.with_gradient` of a step; takes `unless`


class Experiment(Protocol):
  """What a family asks of an experiment, which stands above."""

  @property
  def task(self) -> Task: ...
  @property
  def data(self) -> Data: ...
  @property
  def sampling(self) -> Any: ...
  @property
  def tokenizer(self) -> Any: ...
  @property
  def class_names(self) -> tuple[str, ...] | None: ...
  @property
  def layout(self) -> sharding.Layout: ...
  @property
  def frozen(self) -> PyTree: ...
  def abstract_params(self) -> Params: ...
  def around(self, task: Task) -> "Experiment": ...


class Run(Protocol):
  """What a family asks of a run, which stands above."""

  @property
  def config(self) -> dict[str, Any]: ...
  @property
  def experiment(self) -> Experiment: ...
  @property
  def generator(self) -> Any: ...


class Weights(drawing.Weights, Protocol):
  """What a family asks of the weights of a run."""

  @property
  def step(self) -> int: ...
  @property
  def name(self) -> str: ...
  def provenance(self) -> dict[str, Any]: ...


def refuse(why: str) -> Callable[..., NoReturn]:
  """What a family does not do: raises InputError, whatever it is asked for."""

  def refused(*args: Any, **keys: Any) -> NoReturn:
    del args, keys
    raise InputError(why)

  return refused


class Program(NamedTuple):
  """The compiled loop that answers one prompt per batch shard, still to be compiled.

  Attributes:
    run: the jitted function.
    args: its arguments, abstract, with shardings.
    held: those that stay in memory, by name.
    items: images drawn, or tokens.
  """

  run: Callable
  args: tuple
  held: Mapping[str, PyTree]
  items: int


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
  """What the rest of the house asks of a kind of generative model.

  Attributes:
    name: of the task, in configs.
    kind: of model, for messages: 'an image model'.
    gives: for prompts: 'text' or 'images'.
    settings: flags of commands that are keys of the config's sampling block.
    flags: of `gen-jax sample`, besides.
    datasets: kinds of data that the task learns from.
    sampling: the type of how to draw.
    check: (task, data, sampling); raises InputError where they do not fit.
    model_flops: (task, data, count) -> FLOPs of a training step by convention, by name.
    generator: experiment -> what gives text or images for prompts.
    reference_images: (experiment, split) -> real images, as the model is shown them.
    sample: (args of `gen-jax sample`, run, weights) -> its result.
    generate: (generator, weights, prompts, num, seed, negative) -> num texts or images
      for each prompt.
    program: experiment -> what `generator` compiles, to be priced.
    export: (args of `gen-jax export`, run) -> its result.
    adapter_plans: (experiment, origin of its weights) -> the tensors of each network
      that LoRA files may change, by their names there.
    scorer: experiment -> what finds how likely text is.
    slots: (generator, weights, num, context) -> what draws for many at once; None: the
      model cannot be served.
    check_flags: args of `gen-jax sample` -> None; refuses what excludes each other.
    draws: whether it draws images.
    codec: (task, params, frozen) -> the autoencoder that the model is, or works in,
      with its weights; None without.
    encoder: (task, params, data, flip) -> see `inference.codes`; None: the model is no
      autoencoder.
    layouts: experiment -> other layouts in which checkpoints hold the task's weights.
    baseline_loss: task -> loss of a uniform predictor; None if unknown.
    init_frozen: (task, key) -> what the task needs besides its parameters.
    class_names: (task, data, workdir) -> names of the labels that the task reads.
    idle: (task, sampling) -> {setting of sampling: why it changes nothing}.
  """

  name: str
  kind: str
  gives: str
  settings: Flags
  flags: Flags
  datasets: tuple[type, ...]
  sampling: type
  check: Callable[[Task, Data, Any], None]
  generator: Callable[[Experiment], Generator]
  reference_images: Callable[[Experiment, str], image_sets.ReferenceImages]
  sample: Callable[[Any, Run, Weights], dict[str, Any]]
  generate: Callable[..., list[str] | np.ndarray]
  program: Callable[[Experiment], Program]
  export: Callable[[Any, Run], dict[str, Any]]
  scorer: Callable[[Experiment], scoring.Scorer]
  adapter_plans: Callable[[Experiment, Mapping[str, Any]], dict[str, matching.Plan]]
  slots: Callable[..., slots_.Slots] | None = None
  check_flags: Callable[[Any], None] = lambda args: None
  draws: bool = False
  codec: Callable[[Task, Params, PyTree], tuple[codecs.Codec, PyTree] | None] = (
    lambda task, params, frozen: None
  )
  encoder: Callable[..., Any] | None = None
  model_flops: Callable[[Task, Data, CountFlops], dict[str, float]] = (
    lambda task, data, count: {"mfu": count()}
  )
  layouts: Callable[[Experiment], list[init_from.CheckpointLayout]] = (
    lambda experiment: []
  )
  baseline_loss: Callable[[Task], float | None] = lambda task: None
  init_frozen: Callable[[Task, Array], PyTree] = lambda task, key: {}
  class_names: Callable[[Task, Data, Any], tuple[str, ...] | None] = (
    lambda task, data, workdir: None
  )
  idle: Callable[[Task, Any], Mapping[str, str]] = lambda task, sampling: {}

  def check_fit(self, task: Task, data: Data, sampling: Any) -> None:
    """Raises InputError unless the blocks of a config make one experiment."""
    if not issubclass(type(data), self.datasets):
      table = build.TABLES["dataset"]
      makes = {n: e.make for n, e in table.items() if isinstance(e.make, type)}
      fitting = [n for n, made in makes.items() if issubclass(made, self.datasets)]
      raise InputError(f"task {self.name} needs data.name={' or '.join(fitting)}")
    if data.reads not in sources.gives(data.source):
      what = {"documents": "text", "examples": "images"}.get(data.reads, data.reads)
      raise InputError(
        f"data.source gives no {what}; those that do: {givers(data.reads)}"
      )
    if not isinstance(sampling, self.sampling):
      raise InputError(
        "task language_model needs sampling.name=text, other tasks sampling.name=image"
      )
    self.check(task, data, sampling)


def late(module: str, name: str) -> Callable[..., Any]:
  """A function of a module of `convert`, which is imported when it is called."""

  def call(*args: Any) -> Any:
    return getattr(importlib.import_module(f"gen_jax.convert.{module}"), name)(*args)

  return call


def made_by(weights: Weights, result: dict[str, Any]) -> dict[str, Any]:
  """The result of a command, with the weights that gave it; they are named as well."""
  if jax.process_index() == 0:
    print(f"by the {weights.name} weights of step {weights.step}", file=sys.stderr)
  return {"step": weights.step, "weights": weights.name, **result}


def placed(layout: sharding.Layout, tree_of_shapes: PyTree) -> PyTree:
  """Abstract arrays with shardings: `batched` if of batch size, else replicated."""
  num = layout.num_batch_shards

  def place(x):
    at = layout.batched(x) if x.shape[:1] == (num,) else layout.replicated
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)

  return jax.tree.map(place, tree_of_shapes)


def keys(layout: sharding.Layout) -> PyTree:
  """An abstract key for each batch shard."""
  num = layout.num_batch_shards
  return placed(
    layout, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), num))
  )


def givers(what: str) -> str:
  """Names of the sources that give one of `sources.GIVES`, for messages."""
  table = build.TABLES["source"]
  return ", ".join(n for n, e in table.items() if what in sources.gives(e.signature))


def check_prompts(task: Task, data: Data, captions: str, labels: str) -> None:
  """Raises InputError unless the data gives the captions and labels that a task reads.

  Args:
    captions, labels: what reads them, for messages.
  """
  if "caption" in task.reads:
    for key in ("tokenizer", "caption_length"):
      if getattr(data, key, None) is None:
        raise InputError(f"{captions} reads captions: set data.{key}")
  if "label" in task.reads and "class_names" not in sources.gives(data.source):
    raise InputError(
      f"data.source knows no classes, which {labels} reads; those that do:"
      f" {givers('class_names')}"
    )


def check_equal(name: str, value: int, owner: str, wanted: int) -> None:
  """Raises InputError unless two numbers of a config are the same."""
  if value != wanted:
    raise InputError(f"{name}={value} must equal {owner}={wanted}")


def check_length(name: str, length: int, owner: str, module: Any) -> None:
  """Raises InputError for more tokens than a module reads."""
  if length > module.config.max_length:
    raise InputError(
      f"{name}={length} must be at most {owner}.max_length={module.config.max_length}"
    )
