"""An experiment: everything that a config stands for, built and checked to fit."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

from gen_jax import build, families, numbers, rng, sharding
from gen_jax.build import widths
from gen_jax.cost import flops
from gen_jax.data import datasets, kept, pipeline, tokenizers
from gen_jax.evaluation import image_sets
from gen_jax.tasks import base, lora
from gen_jax.train import evaluators, init_from, loop, mup, trackers
from gen_jax.train import state as states
from gen_jax.train import step as steps
from gen_jax.types import Batch, InputError, Params, PyTree, unknown


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
  """Everything that a config stands for, built.

  `tokenizer` and `class_names` are None where nothing may be read or written (a dry
  run), and where the task reads no captions, or no labels. `source` and `adapter` are
  None where training starts at random and moves all weights. `frozen` is what the task
  needs besides its parameters: abstract, until the command line puts the weights there.
  `narrow` is the task at the width whose settings are kept, see `nn.widths`.
  """

  config: build.Config
  layout: sharding.Layout
  data: datasets.Data
  tokenizer: tokenizers.Tokenizer | None
  task: base.Task
  train: loop.Config
  sampling: Any
  class_names: tuple[str, ...] | None = None
  source: init_from.InitFrom | None = None
  adapter: lora.LoRA | None = None
  frozen: PyTree = dataclasses.field(default_factory=dict)
  narrow: base.Task | None = None

  @property
  def family(self) -> families.Family:
    """What only text, images or autoencoders know."""
    return families.of(self.config)

  @property
  def seed(self) -> int:
    return self.config["seed"]

  @property
  def learner(self) -> base.Task:
    """What is trained: the task, or adapters of it."""
    return lora.Adapted(self.task, self.adapter) if self.adapter else self.task

  def learner_frozen(self, base_params: Params | None) -> PyTree:
    """What the learner needs besides its parameters; base_params of an adapter."""
    return lora.Frozen(base_params, self.frozen) if self.adapter else self.frozen

  def pipeline(self, split: str) -> pipeline.Pipeline:
    """Batches of a split; InputError if its classes are not those of the start."""
    if self.class_names is not None:
      kept.check_class_names(self.data, self.class_names)
    return self.data.pipeline(split, self.tokenizer, self.seed)

  def optimizer(
    self, num_steps: int
  ) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser and its learning rate for a run of num_steps."""
    named, block = numbers.named(num_steps, "num_steps"), self.config["optimizer"]
    optimizer, rate = build.build("optimizer", block, num_steps=named)
    if rates := self.rates():
      optimizer = mup.scaled(optimizer, rates)
    return optimizer, rate

  def step(self, optimizer: optax.GradientTransformation) -> steps.Step:
    """The training step, to be compiled."""
    return steps.make_step(
      self.learner,
      optimizer,
      layout=self.layout,
      num_microbatches=self.train.num_microbatches,
      decay=self.train.ema_decay,
      warmup=self.train.ema_warmup,
    )

  def rates(self) -> dict[str, float]:
    """{path: multiplier of the learning rate} of a model that has a `base_width`.

    Raises:
      InputError: an optimiser for which there is no such rule.
    """
    if self.narrow is None:
      return {}
    tasks = (self.task, self.narrow)
    learners = [dataclasses.replace(self, task=task).learner for task in tasks]
    trees = [_boxed(learner.init, self.batch()) for learner in learners]
    return mup.rates(self.config["optimizer"]["name"], mup.ratios(*trees))

  def batch(self) -> Batch:
    """An abstract global batch in this run's layout."""
    shapes = self.data.abstract_batch()
    return jax.tree.map(lambda x: _placed(x, self.layout.batched(x)), shapes)

  def abstract_state(self, optimizer: optax.GradientTransformation):
    """Shapes and shardings of the training state."""
    args, with_ema = (self.batch(), self.layout), self.train.ema_decay is not None
    return states.abstract(self.learner, optimizer, *args, with_ema=with_ema)

  def abstract_params(self) -> Params:
    """Shapes and shardings of the task's weights."""
    return _abstract(self.layout, self.task.init, self.batch())

  def abstract_learned(self) -> Params:
    """Shapes and shardings of what is trained: the task's weights, or adapters."""
    return _abstract(self.layout, self.learner.init, self.batch())

  def abstract_frozen(self) -> PyTree:
    """Shapes and shardings of what the learner needs besides its parameters."""
    return self.learner_frozen(self.abstract_params() if self.adapter else None)

  def around(self, task: base.Task) -> "Experiment":
    """The experiment with another task of its family, in the same layout."""
    frozen = _abstract(self.layout, functools.partial(self.family.init_frozen, task))
    return dataclasses.replace(self, task=task, frozen=frozen)

  def checkpoint_layouts(self) -> list[init_from.CheckpointLayout]:
    """How the task's weights may be stored, as here first."""
    own = init_from.CheckpointLayout(self.abstract_params(), lambda params: params)
    return [own, *self.family.layouts(self)]

  def flops_per_step(self) -> dict[str, float]:
    """FLOPs that a training step asks of the model, as `flops.with_gradient` counts.

    Traces the loss in this run's layout, which refuses what does not fit in it.
    """
    batch = self.batch()
    params = _abstract(self.layout, self.learner.init, batch)
    rows = jax.tree.leaves(batch)[0].shape[0]
    keys = jax.eval_shape(lambda: rng.per_example(jax.random.key(0), rows))

    def loss(params, frozen, batch, keys):
      with sharding.use(self.layout):
        return self.learner.loss(params, frozen, batch, keys, train=True).loss.total

    args = (loss, params, self.abstract_frozen(), batch, keys)
    count = functools.partial(flops.with_gradient, *args)
    return self.family.model_flops(self.task, self.data, count)

  @property
  def expected_loss(self) -> float | None:
    """Loss of a uniform predictor; None if unknown."""
    return self.family.baseline_loss(self.task)

  def evaluator(self, name: str) -> evaluators.Evaluator:
    """One of them; InputError for a name that no block has."""
    block = self.config["evaluators"].get(name)
    if block is None:
      raise unknown("evaluator", name, self.config["evaluators"])
    return build.build("evaluator", block, f"evaluators.{name}", experiment=self)

  def evaluators(self) -> list[evaluators.Evaluator]:
    """The config's evaluators; reads the data."""
    blocks = self.config["evaluators"]
    return [self.evaluator(name) for name, block in blocks.items() if block is not None]

  def drawing(self, changes: Mapping[str, Any]) -> "Experiment":
    """The same with these keys of `sampling`; InputError if they cannot be."""
    block = {**self.config["sampling"], **changes}
    sampling = build.build("sampling", block)
    self.family.check_fit(self.task, self.data, sampling)
    config = {**self.config, "sampling": block}
    return dataclasses.replace(self, config=config, sampling=sampling)

  def trackers(self) -> dict[str, trackers.Open]:
    """What opens each of train.writers; InputError without its package."""
    names = dict.fromkeys(self.train.writers)
    return {name: build.build("writer", name, "train.writers") for name in names}

  def generator(self) -> families.Generator:
    """Answers prompts with text or images."""
    return self.family.generator(self)

  def reference_images(self, split: str) -> image_sets.ReferenceImages:
    """Real images of a split; InputError for a text model's experiment."""
    return self.family.reference_images(self, split)


def _boxed(init: Callable, *args: Any) -> PyTree:
  """Shapes and axis names of what `init` makes of a key and args."""
  return jax.eval_shape(init, jax.random.key(0), *args)


def _abstract(layout: sharding.Layout, init: Callable, *args: Any) -> PyTree:
  """Shapes and shardings of what `init` makes of a key and args."""
  boxed = _boxed(init, *args)
  return jax.tree.map(_placed, sharding.unbox(boxed), layout.of(boxed))


def _placed(x: jax.ShapeDtypeStruct, at: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)


def make(
  config: build.Config,
  workdir: pathlib.Path | None,
  devices: Sequence[jax.Device] | None = None,
) -> Experiment:
  """Builds a config.

  Args:
    config: plain nested dict, see `configs/`.
    workdir: home of the tokenizer; None reads and writes nothing, and is enough for
      shapes, counts and compilation.
    devices: of the mesh; None: all that are here.

  Raises:
    InputError: anything in the config that cannot be.
  """
  build.check_config(config)
  data = build.build("dataset", config["data"], "data")
  layout = build.build("mesh", config["mesh"], devices=devices)
  train = build.build("train", config["train"])
  train.check_batch_size(data.batch_size, layout.num_batch_shards)
  start = build.build("init_from", config.get("init_from"))
  adapter = build.build("adapter", config.get("adapter"))
  if adapter and not start:
    raise InputError(
      "adapter needs weights to adapt: set init_from.workdir to a trained model"
    )
  tokenizer = None
  if workdir:
    tokenizer = kept.tokenizer_for(data, workdir, start and start.directory)
  injected = {"tokenizer": tokenizer, "caption_length": data.caption_length}
  task = build.build("task", config["task"], **injected)
  narrow = widths.of_base(config)
  sampling = build.build("sampling", config["sampling"])
  family = families.of(config)
  family.check_fit(task, data, sampling)
  names = family.class_names(task, data, workdir) if workdir else None
  return Experiment(
    config=config,
    layout=layout,
    data=data.giving(task.reads),
    tokenizer=tokenizer,
    task=task,
    train=train,
    sampling=sampling,
    class_names=names,
    source=start,
    adapter=adapter,
    narrow=build.build("task", narrow["task"], **injected) if narrow else None,
  ).around(task)
