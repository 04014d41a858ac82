"""An experiment: everything that a config stands for, built and checked to fit."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax

from gen_jax import build, ranges, rng, sharding
from gen_jax.cost import flops
from gen_jax.data import datasets, pipeline, tokenizers
from gen_jax.decoding import generate
from gen_jax.evaluation import image_sets
from gen_jax.inference import image_generator, prompts, text_generator
from gen_jax.models import transformer
from gen_jax.nn import linear
from gen_jax.tasks import autoencoder, base, diffusion, lm, lora
from gen_jax.train import evaluators, init_from, loop
from gen_jax.train import state as states
from gen_jax.types import Batch, InputError, Params, PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
  """Everything that a config stands for, built.

  `tokenizer` and `class_names` are None where nothing may be read or written (a dry
  run), and where the task reads no captions, or no labels. `source`
  and `adapter` are None where training starts at random and moves all weights.
  `frozen` is what the task needs besides its parameters: abstract, until the command
  line puts the weights there.
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
    """Batches of a split.

    Raises:
      InputError: the classes of the data are not those that the run began with.
    """
    if self.class_names is not None:
      datasets.check_class_names(self.data, self.class_names)
    return self.data.pipeline(split, self.tokenizer, self.seed)

  def optimizer(
    self, num_steps: int
  ) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser and its learning rate for a run of num_steps."""
    return build.build("optimizer", self.config["optimizer"], num_steps=num_steps)

  def batch(self) -> Batch:
    """An abstract global batch in this run's layout."""
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.layout.batched(x)),
      self.data.abstract_batch(),
    )

  def abstract_state(self, optimizer: optax.GradientTransformation):
    """Shapes and shardings of the training state."""
    with_ema = self.train.ema_decay is not None
    return states.abstract(
      self.learner, optimizer, self.batch(), self.layout, with_ema=with_ema
    )

  def abstract_params(self) -> Params:
    """Shapes and shardings of the task's weights."""
    return _abstract_params(self.task, self.batch(), self.layout)

  def abstract_frozen(self) -> PyTree:
    """Shapes and shardings of what the learner needs besides its parameters."""
    return self.learner_frozen(self.abstract_params() if self.adapter else None)

  def checkpoint_layouts(self) -> list[init_from.CheckpointLayout]:
    """How the task's weights may be stored, as here first.

    The layers of a transformer may be scanned otherwise; a network with a condition
    may be one without, which ignores it to begin with.
    """
    layouts = [
      init_from.CheckpointLayout(self.abstract_params(), lambda params: params)
    ]
    model = getattr(self.task, "model", None)
    if isinstance(model, transformer.Transformer):
      is_scanned = model.config.scan_layers
      other = dataclasses.replace(model.config, scan_layers=not is_scanned)
      task = dataclasses.replace(self.task, model=transformer.Transformer(other))
      abstract = _abstract_params(task, self.batch(), self.layout)
      convert = transformer.stack if is_scanned else transformer.unstack
      layouts.append(init_from.CheckpointLayout(abstract, convert))
    if isinstance(self.task, diffusion.Diffusion) and self.task.condition is not None:
      config = self.task.network.config
      narrow = self.task.network.clone(
        config=dataclasses.replace(config, extra_channels=0)
      )
      task = dataclasses.replace(
        self.task, network=narrow, condition=None, condition_drop_prob=0.0
      )
      abstract = _abstract_params(task, self.batch(), self.layout)

      def convert(params):
        name, extra = config.params_name, config.extra_channels
        return {**params, name: linear.widen(params[name], config.stem, extra)}

      layouts.append(init_from.CheckpointLayout(abstract, convert))
    return layouts

  def flops_per_step(self) -> dict[str, float]:
    """FLOPs that a training step asks of the model, as `flops.with_gradient` counts.

    Traces the loss in this run's layout, which refuses what does not fit in it. For
    text attention is by formula, and the second figure halves it, for it is causal;
    publications use either.

      mfu         matrices + 12 L T N Dh a token
      mfu_causal  matrices +  6 L T N Dh a token
    """
    batch = self.batch()
    params = _abstract_params(self.learner, batch, self.layout)
    rows = jax.tree.leaves(batch)[0].shape[0]
    keys = jax.eval_shape(lambda: rng.per_example(jax.random.key(0), rows))

    def loss(params, frozen, batch, keys):
      with sharding.use(self.layout):
        return self.learner.loss(params, frozen, batch, keys, train=True).loss.total

    args = (loss, params, self.abstract_frozen(), batch, keys)
    if not isinstance(self.task, lm.LanguageModel):
      return {"mfu": flops.with_gradient(*args)}
    is_attention = lambda e: flops.is_batched(e) or flops.is_kernel(e)  # noqa: E731
    matrices = flops.with_gradient(*args, unless=is_attention)
    cfg = self.task.model.config
    per_token = 12.0 * cfg.num_layers * cfg.num_heads * cfg.dim_per_head
    attention = per_token * min(self.data.length, cfg.window or self.data.length)
    attention *= self.data.items_per_step
    return {"mfu": matrices + attention, "mfu_causal": matrices + attention / 2.0}

  @property
  def expected_loss(self) -> float | None:
    """Loss of a uniform predictor of tokens, ln V; None for images."""
    is_text = isinstance(self.task, lm.LanguageModel)
    return math.log(self.task.model.config.vocab_size) if is_text else None

  def evaluators(self) -> list[evaluators.Evaluator]:
    """The config's evaluators; reads the data."""
    blocks = self.config["evaluators"]
    return [
      build.build("evaluator", block, f"evaluators.{name}", experiment=self)
      for name, block in blocks.items()
      if block is not None
    ]

  def text_generator(self, piece: int = 8) -> text_generator.TextGenerator:
    """Continues prompts (a language model's experiment)."""
    return text_generator.TextGenerator(
      self.task.model, self.tokenizer, self.sampling, piece
    )

  def reference_images(self, split: str) -> image_sets.ReferenceImages:
    """Real images of a split; a latent cache knows which it was made of.

    Raises:
      InputError: a text model's experiment.
    """
    source = data = self.data
    if isinstance(self.task, lm.LanguageModel):
      raise InputError("this is a text model: it has no images")
    if isinstance(data, datasets.LatentData):
      block = data.source.statistics()["data"]
      source = build.build("source", block, "data.source")
    return image_sets.ReferenceImages(
      source.examples(split), data.image_size, data.channels, self.class_names
    )

  def _read_prompts(self) -> prompts.Read:
    """How the task's prompts are read from strings."""
    if "caption" in self.task.reads:
      return prompts.captions(self.tokenizer, self.data.caption_length)
    return prompts.labels(self.class_names) if self.task.reads else prompts.nothing

  def image_generator(self) -> image_generator.ImageGenerator:
    """Draws images for captions (a diffusion experiment)."""
    side = self.data.image_size
    height, width = self.sampling.size or (side, side)
    shards = self.layout.num_batch_shards
    return image_generator.ImageGenerator(
      self.task,
      self._read_prompts(),
      self.sampling,
      image_generator.latent_shape(self.task, (height, width, self.data.channels)),
      -(-max(1, min(50, 2**18 // (height * width))) // shards) * shards,  # at once
      self.layout.spread,
    )


def _abstract_params(task, batch, layout):
  boxed = jax.eval_shape(task.init, jax.random.key(0), batch)
  return jax.tree.map(
    lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
    sharding.unbox(boxed),
    layout.of(boxed),
  )


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
  check_config(config)
  data = build.build("dataset", config["data"], "data")
  layout = build.build("mesh", config["mesh"], devices=devices)
  train = build.build("train", config["train"])
  pieces = layout.num_batch_shards * train.num_microbatches
  if data.batch_size % pieces:
    near = max(data.batch_size // pieces, 1) * pieces
    raise InputError(
      f"data.batch_size={data.batch_size} must be divisible by {pieces}: mesh data x"
      f" fsdp = {layout.num_batch_shards}, times train.num_microbatches ="
      f" {train.num_microbatches}; try {near} or {near + pieces}"
    )
  start = build.build("init_from", config.get("init_from"))
  adapter = build.build("adapter", config.get("adapter"))
  if adapter and not start:
    raise InputError(
      "adapter needs weights to adapt: set init_from.workdir to a trained model"
    )
  tokenizer = None
  if workdir:
    tokenizer = datasets.tokenizer_for(data, workdir, start and start.directory)
  injected = {"tokenizer": tokenizer}
  if isinstance(data, datasets.ImageData | datasets.LatentData):
    injected["caption_length"] = data.caption_length
  task = build.build("task", config["task"], **injected)
  sampling = build.build("sampling", config["sampling"])
  _check_fit(task, data, sampling)
  data, class_names = data.giving(task.reads), None
  if workdir and "label" in task.reads:
    class_names = datasets.class_names_for(data, workdir)
    _check_num_classes(task, class_names)
  return Experiment(
    config=config,
    layout=layout,
    data=data,
    tokenizer=tokenizer,
    task=task,
    train=train,
    sampling=sampling,
    class_names=class_names,
    source=start,
    adapter=adapter,
    frozen=_abstract_frozen(task, layout),
  )


def _abstract_frozen(task: base.Task, layout: sharding.Layout) -> PyTree:
  """Shapes and shardings of an autoencoder that a task works in; {} without one."""
  if not isinstance(task, diffusion.Diffusion):
    return {}
  boxed = jax.eval_shape(task.codec.init, jax.random.key(0))
  return jax.tree.map(
    lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
    sharding.unbox(boxed),
    layout.of(boxed),
  )


def check_config(config: build.Config) -> None:
  """Checks every name, key and type in a config, and builds nothing.

  Raises:
    InputError: says where and what.
  """
  needed = (*build.BLOCKS, "seed", "evaluators")
  known = (*needed, *build.OPTIONAL)
  if not isinstance(config, Mapping):
    raise InputError(
      f"a config has the keys {', '.join(known)}; this is {ranges.shown(config)}"
    )
  with build.pointing(config):
    for key in config:
      if key not in known:
        raise build.unknown_key("", config, key, config[key])
    missing = [key for key in needed if config.get(key) is None]
    if missing:
      raise InputError(f"the config needs {', '.join(missing)}")
    ranges.typed(config["seed"], ranges.Seed, "seed")
    for name in (*build.BLOCKS, *build.OPTIONAL):
      build.check("dataset" if name == "data" else name, config.get(name), name)
    if not isinstance(config["evaluators"], Mapping):
      shown = ranges.shown(config["evaluators"])
      raise InputError(f"evaluators={shown} must be blocks by name")
    for name, block in config["evaluators"].items():
      build.check("evaluator", block, f"evaluators.{name}")


def _check_fit(task: base.Task, data: datasets.Data, sampling: Any) -> None:
  is_text = isinstance(task, lm.LanguageModel)
  fitting = [n for n, e in build.TABLES["dataset"].items() if _reads(task, e.make)]
  if not _reads(task, type(data)):
    name = "language_model" if is_text else type(task).__name__.lower()
    raise InputError(f"task {name} needs data.name={' or '.join(fitting)}")
  if not hasattr(data.source, data.reads):
    fitting = [
      n for n, e in build.TABLES["source"].items() if hasattr(e.signature, data.reads)
    ]
    what = {"documents": "text", "examples": "images"}.get(data.reads, data.reads)
    raise InputError(
      f"data.source gives no {what}; those that do: {', '.join(fitting)}"
    )
  if is_text != isinstance(sampling, generate.Sampling):
    raise InputError(
      "task language_model needs sampling.name=text, other tasks sampling.name=image"
    )
  if is_text:
    _check_length("data.length", data.length, "task.model", task.model)
  elif isinstance(task, autoencoder.Autoencode):
    owner, channels = "task.autoencoder", task.autoencoder.config.image_channels
    _check_channels("data.channels", data.channels, f"{owner}.image_channels", channels)
  else:
    _check_prompts(task, data)
    image = (data.image_size, data.image_size, data.channels)
    channels, *sides = reversed(task.codec.shape(image))
    if isinstance(data, datasets.LatentData):
      if task.codec.stored is None:
        raise InputError("data.name=latents needs task.codec.name=latent")
      given = (data.latent_size, data.latent_size, data.latent_channels)
      if given != (*sides, channels):
        raise InputError(
          f"data: latents of {list(given)} do not fit the codec, which makes"
          f" {[*sides, channels]} of images {list(image)}"
        )
    name = "data.channels" if channels == data.channels else "channels of the codec"
    own = task.network.config.image_channels
    _check_channels(name, channels, "task.network.image_channels", own)
    _check_condition(task, data, channels)
    diffusion.check_times(task, sampling)


def _check_prompts(task: diffusion.Diffusion, data: datasets.Data) -> None:
  """Whether the data gives the captions or labels that the task reads, no others."""
  if "caption" in task.reads:
    for key in ("tokenizer", "caption_length"):
      if getattr(data, key) is None:
        raise InputError(f"task.conditioning=text reads captions: set data.{key}")
    encoder = task.conditioning.text_encoder
    owner = "task.conditioning.text_encoder"
    _check_length("data.caption_length", data.caption_length, owner, encoder)
  elif data.tokenizer is not None:
    raise InputError(
      "data.tokenizer is for captions, which task.conditioning does not read; set it"
      " and data.caption_length to None, or take conditioning=text"
    )
  if "label" in task.reads and not hasattr(data.source, "class_names"):
    table = build.TABLES["source"]
    fitting = [n for n, e in table.items() if hasattr(e.signature, "class_names")]
    raise InputError(
      f"data.source knows no classes, which task.conditioning=labels reads; those that"
      f" do: {', '.join(fitting)}"
    )


def _check_num_classes(task: diffusion.Diffusion, names: Sequence[str]) -> None:
  num = task.conditioning.num_classes
  if num != len(names):
    raise InputError(
      f"task.conditioning.num_classes={num} must equal the number of classes of the"
      f" data, {len(names)}"
    )


def _check_condition(task: diffusion.Diffusion, data: datasets.Data, channels: int):
  """Whether the network's extra channels hold what the data gives."""
  condition, name = task.condition, "task.network.extra_channels"
  extra = task.network.config.extra_channels
  if condition is None and extra:
    names = " or ".join(build.TABLES["condition"])
    raise InputError(f"{name}={extra} needs task.condition: {names}")
  if condition is not None:
    wanted = condition.channels(channels)
    _check_channels(name, extra, "those of task.condition", wanted)
    if condition.reads not in data.abstract_batch():
      needed = {"before": "edits"}.get(condition.reads, "images")
      raise InputError(f"task.condition needs images: set data.name={needed}")


def _reads(task: base.Task, dataset: Any) -> bool:
  """Whether a task can learn from a kind of data set."""
  if isinstance(task, lm.LanguageModel):
    return issubclass(dataset, datasets.TextData)
  kinds = (datasets.ImageData, datasets.LatentData)
  return issubclass(dataset, kinds[: 1 + isinstance(task, diffusion.Diffusion)])


def _check_channels(name: str, channels: int, owner: str, wanted: int) -> None:
  if channels != wanted:
    raise InputError(f"{name}={channels} must equal {owner}={wanted}")


def _check_length(name: str, length: int, owner: str, module: Any) -> None:
  if length > module.config.max_length:
    raise InputError(
      f"{name}={length} must be at most {owner}.max_length={module.config.max_length}"
    )
