"""Images: diffusion in pixels or latents, under captions, labels or nothing."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from gen_jax import build, sharding
from gen_jax.data import datasets, kept
from gen_jax.evaluation import image_sets
from gen_jax.families import base
from gen_jax.inference import drawing, image_generator, prompts, settings
from gen_jax.nn import linear
from gen_jax.system import folders
from gen_jax.tasks import diffusion
from gen_jax.train import init_from
from gen_jax.types import InputError

Data = datasets.ImageData | datasets.LatentData


def _check(task: diffusion.Diffusion, data: Data, sampling: diffusion.Sampling) -> None:
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
  base.check_equal(name, channels, "task.network.image_channels", own)
  _check_condition(task, data, channels)
  diffusion.check_times(task, sampling)


def _check_prompts(task: diffusion.Diffusion, data: Data) -> None:
  """Whether the data gives the captions or labels that the task reads, no others."""
  names = (f"task.conditioning={name}" for name in ("text", "labels"))
  base.check_prompts(task, data, *names)
  if "caption" in task.reads:
    conditioning: Any = task.conditioning  # one that reads captions has an encoder
    owner, encoder = "task.conditioning.text_encoder", conditioning.text_encoder
    length = data.caption_length or 0
    base.check_length("data.caption_length", length, owner, encoder)
  elif data.tokenizer is not None:
    raise InputError(
      "data.tokenizer is for captions, which task.conditioning does not read; set it"
      " and data.caption_length to None, or take conditioning=text"
    )


def _check_condition(task: diffusion.Diffusion, data: Data, channels: int) -> None:
  """Whether the network's extra channels hold what the data gives."""
  condition, name = task.condition, "task.network.extra_channels"
  extra = task.network.config.extra_channels
  if condition is None and extra:
    names = " or ".join(build.TABLES["condition"])
    raise InputError(f"{name}={extra} needs task.condition: {names}")
  if condition is not None:
    wanted = condition.channels(channels)
    base.check_equal(name, extra, "those of task.condition", wanted)
    if condition.reads not in data.abstract_batch():
      needed = {"before": "edits"}.get(condition.reads, "images")
      raise InputError(f"task.condition needs images: set data.name={needed}")


def _class_names(task: diffusion.Diffusion, data: Data, workdir: pathlib.Path):
  """Names of the classes of a workdir, None where labels are not read."""
  if "label" not in task.reads:
    return None
  conditioning: Any = task.conditioning  # one that reads labels knows their number
  names, num = kept.class_names_for(data, workdir), conditioning.num_classes
  if num != len(names):
    raise InputError(
      f"task.conditioning.num_classes={num} must equal the number of classes of the"
      f" data, {len(names)}"
    )
  return names


def _layouts(experiment: base.Experiment) -> list[init_from.CheckpointLayout]:
  """A network with a condition may be one without, which ignores it to begin with."""
  task = experiment.task
  if task.condition is None:
    return []
  config = task.network.config
  narrow = task.network.clone(config=dataclasses.replace(config, extra_channels=0))
  task = dataclasses.replace(
    task, network=narrow, condition=None, condition_drop_prob=0.0
  )

  def convert(params):
    name, extra = config.params_name, config.extra_channels
    return {**params, name: linear.widen(params[name], config.stem, extra)}

  abstract = experiment.around(task).abstract_params()
  return [init_from.CheckpointLayout(abstract, convert)]


def _read_prompts(experiment: base.Experiment) -> prompts.Read:
  """How prompts are read from strings."""
  if "caption" in experiment.task.reads:
    return prompts.captions(experiment.tokenizer, experiment.data.caption_length)
  reads = experiment.task.reads
  return prompts.labels(experiment.class_names or ()) if reads else prompts.nothing


def _generator(experiment: base.Experiment) -> image_generator.ImageGenerator:
  """Draws images for prompts."""
  task, data, layout = experiment.task, experiment.data, experiment.layout
  height, width = experiment.sampling.size or (data.image_size, data.image_size)
  shards = layout.num_batch_shards
  return image_generator.ImageGenerator(
    task,
    _read_prompts(experiment),
    experiment.sampling,
    image_generator.latent_shape(task, (height, width, data.channels)),
    -(-max(1, min(50, 2**18 // (height * width))) // shards) * shards,  # at once
    layout.spread,
  )


def reference_images(experiment: base.Experiment, split: str):
  """Real images of a split; a latent cache knows which it was made of."""
  source = data = experiment.data
  if isinstance(data, datasets.LatentData):
    block = data.source.statistics()["data"]
    source = build.build("source", block, "data.source")
  return image_sets.ReferenceImages(
    source.examples(split), data.image_size, data.channels, experiment.class_names
  )


def check_flags(args) -> None:
  """Raises InputError for an interpolation that cannot be."""
  if args.interpolate is not None and (
    not 2 <= args.interpolate <= drawing.MOST
    or len(args.prompt or []) != 2
    or args.num != 1
  ):
    raise InputError(
      f"--interpolate {args.interpolate} must be at least 2 and at most {drawing.MOST},"
      " with --prompt twice and no --num"
    )


def sample(args, run: base.Run, weights: base.Weights):
  """Draws images into a folder."""
  num, negative = args.interpolate or args.num, args.negative or ""
  draw = drawing.between if args.interpolate else drawing.images
  prompt = args.prompt or [""]
  plan = draw(run.generator, weights, prompt, num, args.seed, negative)
  how = {**run.config["sampling"], "negative": negative}
  how |= {"num": num, **weights.provenance()}
  with folders.out(args.out, args.workdir / "samples") as folder:
    result = plan.write(folder, args.seed, num, how)
  return base.made_by(weights, result)


def generate(generator, weights, prompts, num, seed, negative) -> np.ndarray:
  """uint8 [N, H, W, C], num for each prompt."""
  return drawing.images(generator, weights, prompts, num, seed, negative).all()


def _program(experiment: base.Experiment) -> base.Program:
  """All steps of the sampler, and the decoder."""
  layout, data, task = experiment.layout, experiment.data, experiment.task
  params, num = experiment.abstract_params(), layout.num_batch_shards
  sides = experiment.sampling.size or (data.image_size, data.image_size)
  shape = image_generator.latent_shape(task, (*sides, data.channels))
  null = jax.eval_shape(lambda: task.conditioning.null(num))

  def draw(params, frozen, prompt, keys):
    with sharding.use(layout):
      given = (params, frozen, prompt, keys, shape)
      return diffusion.draw(task, experiment.sampling, *given)

  prompt, frozen = base.placed(layout, null), experiment.frozen
  return base.Program(
    jax.jit(draw),
    (params, frozen, prompt, base.keys(layout)),
    held={"parameters": params, "frozen": frozen},
    items=num,
  )


scorer = base.refuse("--text and --choices are for text; this is an image model")


FAMILY = base.Family(
  name="diffusion",
  kind="an image model",
  gives="images",
  settings=settings.IMAGE_SETTINGS,
  flags=settings.IMAGE_FLAGS,
  draws=True,
  datasets=(datasets.ImageData, datasets.LatentData),
  sampling=diffusion.Sampling,
  check=_check,
  layouts=_layouts,
  init_frozen=lambda task, key: task.codec.init(key),
  class_names=_class_names,
  codec=lambda task, params, frozen: (
    (task.codec, frozen) if "autoencoder" in frozen else None
  ),
  generator=_generator,
  generate=generate,
  program=_program,
  sample=sample,
  check_flags=check_flags,
  export=base.late("to_diffusers", "export"),
  adapter_plans=base.late("to_diffusers", "adapter_plans"),
  reference_images=reference_images,
  scorer=scorer,
  idle=diffusion.idle,
)
