"""From configs to objects: the only place where names are looked up.

A block of a config is {'name': ..., keyword arguments of what the name stands for}.
Keys that are kinds themselves ('model', 'schedule', 'norm', ...) are built first, to
any depth; a bare string is short for {'name': string}. Unknown names and keys raise
`InputError` with the nearest right ones. ConfigDict stops here.
"""

import dataclasses
import functools
import inspect
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from gen_jax import optim, prompting, sharding
from gen_jax.data import datasets, pipeline, sources, tokenizers
from gen_jax.data.digits import digits_dataset_builder, judge
from gen_jax.decoding import generate
from gen_jax.diffusion import (
  codec,
  corrupt,
  grids,
  parameterisation,
  samplers,
  schedule,
  weighting,
)
from gen_jax.models import text_encoder, transformer, unet
from gen_jax.nn import embed, mlp, norms
from gen_jax.tasks import base, diffusion, lm
from gen_jax.train import evaluators, loop
from gen_jax.train import state as states
from gen_jax.types import Batch, InputError, PyTree, unknown

Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Entry:
  """What a name stands for.

  Attributes:
    make: called with the block's keys, and with those of `injected` that are at hand.
    signature: the callable whose parameters are the block's keys ...
    injected: ... except these, which do not come from the config.
  """

  make: Callable[..., Any]
  signature: Callable[..., Any]
  injected: tuple[str, ...] = ()

  def keys(self) -> dict[str, bool]:
    """{key: whether it is required}."""
    hidden = {*self.injected, "parent", "name"}  # linen adds the last two
    parameters = inspect.signature(self.signature).parameters
    empty = inspect.Parameter.empty
    return {n: p.default is empty for n, p in parameters.items() if n not in hidden}


def _plain(fn, *injected):
  return Entry(fn, fn, injected)


def _later(fn, *injected):
  """A constructor or function with the block's keys bound, called elsewhere."""
  return Entry(lambda **keys: functools.partial(fn, **keys), fn, injected)


def _model(module, config):
  return Entry(lambda **keys: module(config(**keys)), config)


def _value(value):
  return Entry(lambda: value, lambda: value)


def _language_model(model, tokenizer):
  size = model.config.vocab_size
  if tokenizer is None:
    return lm.LanguageModel(model, np.zeros(size, np.int32))
  if tokenizer.vocab_size > size:
    raise InputError(
      f"task.model.vocab_size={size} is smaller than the tokenizer's vocabulary of"
      f" {tokenizer.vocab_size}; raise it to at least that"
    )
  return lm.LanguageModel(model, tokenizer.token_bytes(size))


def _diffusion(tokenizer, caption_length, **keys):
  tokens = np.zeros((1, caption_length), np.int32)
  mask = np.ones((1, caption_length), np.bool_)
  if tokenizer is not None:
    if tokenizer.vocab_size > keys["text_encoder"].config.vocab_size:
      raise InputError(
        "task.text_encoder.vocab_size="
        f"{keys['text_encoder'].config.vocab_size} is smaller than the tokenizer's"
        f" vocabulary of {tokenizer.vocab_size}; raise it to at least that"
      )
    pair = pipeline.pad_caption("", tokenizer, caption_length)
    tokens, mask = (x[None] for x in pair)
  return diffusion.Diffusion(null_caption=diffusion.Caption(tokens, mask), **keys)


def _loss_evaluator(experiment, every, split="validation", max_batches=None):
  task, layout, data = experiment.task, experiment.layout, experiment.data
  rows = layout.local_rows(data.batch_size)
  split_pipeline = experiment.pipeline(split)

  def batches():
    for batch in split_pipeline.once(rows, max_batches):
      yield layout.put(batch, data.batch_size)

  def loss(weights, frozen, batch, keys):
    with sharding.use(layout):
      return task.loss(weights, frozen, batch, keys, train=False)

  return evaluators.LossEvaluator(every, split, batches, jax.jit(loss))


def _gzip(experiment, every, split="validation"):
  return evaluators.GzipBaseline(every, experiment.data.source.documents(split))


def _prompt_accuracy(experiment, every, num_per_digit=20, phrase="a handwritten {}"):
  names = digits_dataset_builder.NAMES
  labels = np.repeat(np.arange(len(names)), num_per_digit)
  captions = [phrase.format(names[label]) for label in labels]
  painter = experiment.painter()
  size = experiment.data.image_size
  judged, real_accuracy = judge.train(experiment.data.source, size)

  def draw(weights, frozen):
    return painter.images(weights, frozen, captions, prompting.keys(0, len(labels)))

  return evaluators.PromptAccuracy(every, draw, labels, judged, real_accuracy)


TABLES: Mapping[str, Mapping[str, Entry]] = {
  "task": {
    "language_model": _plain(_language_model, "tokenizer"),
    "diffusion": Entry(
      _diffusion,
      diffusion.Diffusion,
      ("tokenizer", "caption_length", "null_caption"),
    ),
  },
  "model": {"transformer": _model(transformer.Transformer, transformer.Config)},
  "unet": {"unet": _model(unet.UNet, unet.Config)},
  "text_encoder": {
    "text_encoder": _model(text_encoder.TextEncoder, text_encoder.Config)
  },
  "norm": {"layer_norm": _later(norms.LayerNorm), "rms_norm": _later(norms.RMSNorm)},
  "mlp": {
    name: _later(module, "hidden", "use_bias", "init", "out_init", "dtype")
    for name, module in (("mlp", mlp.MLP), ("gated_mlp", mlp.GatedMLP))
  },
  "activation": {
    "gelu": _value(functools.partial(jax.nn.gelu, approximate=True)),
    "gelu_exact": _value(functools.partial(jax.nn.gelu, approximate=False)),
    "relu": _value(jax.nn.relu),
    "silu": _value(jax.nn.silu),
  },
  "position": {
    "learned": _later(embed.LearnedPositions, "max_length", "width"),
    "sinusoidal": _later(embed.SinusoidalPositions, "max_length", "width"),
  },
  "rotary": {"rotary": _plain(embed.Rotary)},
  "schedule": {
    "vp_linear": _plain(schedule.VPLinear),
    "linear": _plain(schedule.Linear),
    "scaled_linear": _plain(schedule.ScaledLinear),
    "cosine": _plain(schedule.Cosine),
    "karras": _plain(schedule.Karras),
    "rectified_flow": _plain(schedule.RectifiedFlow),
    "shift": _plain(schedule.Shift),
  },
  "target": {
    "x0": _plain(parameterisation.X0),
    "eps": _plain(parameterisation.Eps),
    "v": _plain(parameterisation.V),
    "velocity": _plain(parameterisation.Velocity),
    "score": _plain(parameterisation.Score),
    "edm": _plain(parameterisation.EDM),
  },
  "weighting": {
    "unit": _plain(weighting.Unit),
    "min_snr": _plain(weighting.MinSNR),
    "edm": _plain(weighting.EDMWeight),
    "sigmoid": _plain(weighting.Sigmoid),
  },
  "time_sampler": {
    "uniform": _plain(corrupt.UniformTime),
    "stratified": _plain(corrupt.StratifiedTime),
    "logit_normal": _plain(corrupt.LogitNormalTime),
    "lognormal_sigma": _plain(corrupt.LogNormalSigma),
  },
  "codec": {"identity": _plain(codec.identity), "affine": _plain(codec.affine)},
  "sampler": {
    "ddpm": _later(samplers.ddpm, "schedule"),
    "ddim": _later(samplers.ddim, "schedule"),
    "euler": _later(samplers.euler, "schedule"),
    "heun": _later(samplers.heun, "schedule"),
    "dpmpp_2m": _later(samplers.dpmpp_2m, "schedule"),
  },
  "scale": {"by_alpha": _value(samplers.by_alpha), "by_sum": _value(samplers.by_sum)},
  "grid": {
    "uniform": _later(grids.uniform, "schedule", "num_steps"),
    "karras": _later(grids.karras, "schedule", "num_steps"),
    "uniform_logsnr": _later(grids.uniform_logsnr, "schedule", "num_steps"),
  },
  "sampling": {
    "text": _plain(generate.Sampling),
    "image": _plain(diffusion.Sampling),
  },
  "learning_rate": {
    "constant": _plain(optim.constant, "num_steps"),
    "cosine": _plain(optim.cosine, "num_steps"),
    "linear": _plain(optim.linear, "num_steps"),
    "wsd": _plain(optim.wsd, "num_steps"),
  },
  "optimizer": {
    "adamw": _plain(optim.adamw),
    "lion": _plain(optim.lion),
    "adafactor": _plain(optim.adafactor),
    "sgd": _plain(optim.sgd),
  },
  "dataset": {
    "text": _plain(datasets.TextData),
    "images": _plain(datasets.ImageData),
  },
  "source": {
    "pydoc": _plain(sources.Pydoc),
    "files": _plain(sources.TextFiles),
    "jsonl": _plain(sources.JsonLines),
    "tfds_text": _plain(sources.TfdsText),
    "tfds_images": _plain(sources.TfdsImages),
    "digits": _plain(sources.Digits),
    "image_folder": _plain(sources.ImageFolder),
    "npz": _plain(sources.Npz),
  },
  "tokenizer": {
    "bpe": _later(tokenizers.train_bpe, "texts"),
    "file": _later(tokenizers.from_file, "texts"),
  },
  "evaluator": {
    "loss": _plain(_loss_evaluator, "experiment"),
    "gzip": _plain(_gzip, "experiment"),
    "prompt_accuracy": _plain(_prompt_accuracy, "experiment"),
  },
  "train": {"train": _plain(loop.Config)},
  "mesh": {"mesh": _plain(sharding.make_layout, "devices")},
}


def build(kind: str, block: Any, path: str | None = None, **injected: Any) -> Any:
  """Builds what a block stands for.

  Args:
    kind: a key of TABLES.
    block: {'name': ..., keys}, a bare name, or None (which stays None).
    path: of the block in the config, for messages.
    injected: arguments that do not come from the config, for this block and below.

  Raises:
    InputError: unknown name or key, missing key, or a value that its owner refuses.
  """
  path = path or kind
  if block is None:
    return None
  if isinstance(block, str):
    block = {"name": block}
  if not isinstance(block, Mapping):
    raise InputError(f"{path}={block!r} must be a block with a name, or a name")
  table = TABLES[kind]
  name = block.get("name", kind if len(table) == 1 else None)
  if name not in table:
    raise unknown(f"name (of {path})", name, table)
  entry = table[name]
  keys = entry.keys()
  values = {}
  for key, value in block.items():
    if key == "name":
      continue
    if key not in keys:
      raise unknown(f"key (of {path}, a {name!r})", key, keys)
    if key in TABLES:
      values[key] = build(key, value, f"{path}.{key}", **injected)
    else:
      values[key] = _tuples(value)
  missing = [key for key, needed in keys.items() if needed and key not in values]
  if missing:
    raise InputError(f"{path} (a {name!r}) needs {', '.join(missing)}")
  try:
    given = {key: injected[key] for key in entry.injected if key in injected}
    return entry.make(**values, **given)
  except InputError:
    raise
  except TypeError as error:
    raise InputError(f"{path} (a {name!r}): {error}") from error


def keys_of(path: str, block: Config) -> list[str]:
  """The keys that the block at a dotted path of the config may have."""
  if not path:
    return [*BLOCKS, "seed", "evaluators"]
  head, _, last = path.rpartition(".")
  kind = "evaluator" if head == "evaluators" else {"data": "dataset"}.get(path, last)
  table = TABLES.get(kind, {})
  entry = table.get(block.get("name", kind if len(table) == 1 else None))
  return ["name", *entry.keys()] if entry else list(block)


def _tuples(value: Any) -> Any:
  """JSON has only lists; configs want tuples."""
  return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


BLOCKS = ("task", "data", "optimizer", "train", "mesh", "sampling")


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
  """Everything that a config stands for, built.

  `tokenizer` is None where nothing may be read or written (a dry run).
  """

  config: Config
  layout: sharding.Layout
  data: datasets.Data
  tokenizer: tokenizers.Tokenizer | None
  task: base.Task
  train: loop.Config
  sampling: Any

  @property
  def seed(self) -> int:
    return self.config["seed"]

  @property
  def frozen(self) -> PyTree:
    """What the task needs beside its parameters."""
    return {}

  def pipeline(self, split: str) -> pipeline.Pipeline:
    """Batches of a split."""
    return self.data.pipeline(split, self.tokenizer, self.seed)

  def optimizer(
    self, num_steps: int
  ) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser and its learning rate for a run of num_steps."""
    block = self.config["optimizer"]
    rate = build(
      "learning_rate",
      block.get("learning_rate"),
      "optimizer.learning_rate",
      num_steps=num_steps,
    )
    return build("optimizer", block, num_steps=num_steps), rate

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
      self.task, optimizer, self.batch(), self.layout, with_ema=with_ema
    )

  def evaluators(self) -> list[evaluators.Evaluator]:
    """The config's evaluators; reads the data."""
    blocks = self.config["evaluators"]
    return [
      build("evaluator", block, f"evaluators.{name}", experiment=self)
      for name, block in blocks.items()
      if block is not None
    ]

  def writer(self, piece: int = 8) -> prompting.Writer:
    """Continues prompts (a language model's experiment)."""
    return prompting.Writer(self.task.model, self.tokenizer, self.sampling, piece)

  def painter(self) -> prompting.Painter:
    """Draws pictures for captions (a diffusion experiment)."""
    side, channels = self.data.image_size, self.data.channels
    return prompting.Painter(
      self.task,
      self.tokenizer,
      self.sampling,
      (side, side, channels),
      self.data.caption_length,
    )


def experiment(config: Config, workdir: pathlib.Path | None) -> Experiment:
  """Builds a config.

  Args:
    config: plain nested dict, see `configs/`.
    workdir: home of tokenizer.json; None reads and writes nothing, and is enough for
      shapes, counts and compilation.

  Raises:
    InputError: anything in the config that cannot be.
  """
  known = (*BLOCKS, "seed", "evaluators")
  for key in config:
    if key not in known:
      raise unknown("key (of the config)", key, known)
  missing = [key for key in known if key not in config]
  if missing:
    raise InputError(f"the config needs {', '.join(missing)}")
  data = build("dataset", config["data"], "data")
  layout = build("mesh", config["mesh"])
  train = build("train", config["train"])
  for x in data.abstract_batch().values():
    layout.batched(x)
  pieces = train.num_microbatches * layout.num_batch_shards
  if data.batch_size % pieces:
    raise InputError(
      f"data.batch_size={data.batch_size} must be divisible by"
      f" {layout.num_batch_shards} shards x {train.num_microbatches} microbatches"
    )
  tokenizer = datasets.tokenizer_for(data, workdir) if workdir else None
  injected = {"tokenizer": tokenizer}
  if isinstance(data, datasets.ImageData):
    injected["caption_length"] = data.caption_length
  task = build("task", config["task"], **injected)
  _check_lengths(task, data)
  return Experiment(
    config=config,
    layout=layout,
    data=data,
    tokenizer=tokenizer,
    task=task,
    train=train,
    sampling=build("sampling", config["sampling"]),
  )


def _check_lengths(task: base.Task, data: datasets.Data) -> None:
  if isinstance(task, lm.LanguageModel) != isinstance(data, datasets.TextData):
    raise InputError("a language_model task needs text data, a diffusion task images")
  if isinstance(task, lm.LanguageModel):
    pairs = [("data.length", data.length, "task.model", task.model)]
  else:
    pairs = [
      (
        "data.caption_length",
        data.caption_length,
        "task.text_encoder",
        task.text_encoder,
      )
    ]
    channels = task.unet.config.image_channels
    if channels != data.channels:
      raise InputError(
        f"data.channels={data.channels} must equal task.unet.image_channels={channels}"
      )
  for name, length, owner, module in pairs:
    if length > module.config.max_length:
      raise InputError(
        f"{name}={length} must be at most {owner}.max_length={module.config.max_length}"
      )
