"""Evaluators of an experiment: what the blocks of a config's `evaluators` stand for.

Each function takes the experiment and the block's keys, prepares data and compiled
functions, and returns one of `train.evaluators`.
"""

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import numpy as np

from gen_jax import numbers, ranges, rng, sharding
from gen_jax.data import cache, image_files, sources
from gen_jax.decoding import generate
from gen_jax.evaluation import features as features_
from gen_jax.evaluation import image_sets, metrics
from gen_jax.inference import text_generator
from gen_jax.system import progress
from gen_jax.tasks import base, flow
from gen_jax.train import evaluators
from gen_jax.types import InputError, unknown


def check_split(split: str) -> None:
  """Raises InputError for a split that no source has."""
  if split not in ("train", "validation"):
    raise unknown("split (of an evaluator)", split, ("train", "validation"))


def loss(
  experiment,
  every: ranges.Whole,
  split: str = "validation",
  max_batches: ranges.Count | None = None,
) -> evaluators.LossEvaluator:
  """The task's loss and metrics on a split, the same noise every time."""
  check_split(split)
  task, layout, data = experiment.task, experiment.layout, experiment.data
  rows = layout.local_rows(data.batch_size)
  split_pipeline = experiment.pipeline(split)
  total = -(-len(split_pipeline.examples) // data.batch_size)
  total = min(total, max_batches or total)

  def batches():
    found = split_pipeline.once(rows, max_batches)
    for batch in progress.track(found, total, f"batches of {split}"):
      yield layout.put(batch, data.batch_size)

  def sums(weights, frozen, batch, keys):
    with sharding.use(layout):
      return task.loss(weights, frozen, batch, keys, train=False)

  return evaluators.LossEvaluator(every, split, batches, numbers.jit(sums))


def by_position(
  experiment,
  every: ranges.Whole,
  num: ranges.Size = 8,
  split: str = "validation",
  max_batches: ranges.Count | None = None,
) -> evaluators.LossEvaluator:
  """The loss on each of `num` equal parts of a row's targets, counted from 1.

  That it falls along the row is what a model learns from the context alone.
  """
  whole = loss(experiment, every, split, max_batches)
  length, *_ = *experiment.data.abstract_batch()["weights"].shape[1:], 0
  if length < num or length % num:
    raise InputError(
      f"evaluator by_position: num={num} must divide the tokens of a row, which are"
      f" {length}"
    )
  size = length // num
  names = [f"{i * size + 1}-{(i + 1) * size}/loss" for i in range(num)]
  parts = np.repeat(np.eye(num, dtype=np.float32), size, axis=1)

  def sums(weights, frozen, batch, keys):
    def of(part):
      some = {**batch, "weights": batch["weights"] * part}
      return whole.loss(weights, frozen, some, keys).loss

    # One forward pass: only the masks are mapped over.
    found = jax.vmap(of)(parts[:, None])
    means = [jax.tree.map(operator.itemgetter(i), found) for i in range(num)]
    total = functools.reduce(operator.add, means)
    return base.LossOut(total, dict(zip(names, means, strict=True)))

  return dataclasses.replace(whole, prefix="by_position", loss=numbers.jit(sums))


def likelihood(
  experiment,
  every: ranges.Whole,
  num: ranges.Size,
  split: str = "validation",
  num_steps: ranges.Size = 64,
) -> evaluators.BitsPerDim:
  """Bits per dimension of the first `num` images of a split, under their captions.

  By the probability-flow ODE without guidance, in num_steps of four evaluations.
  """
  check_split(split)
  task, data = experiment.task, experiment.data
  if "image" not in data.abstract_batch() or experiment.frozen:
    raise InputError("likelihood is of models that draw pixels; this one does not")
  if not experiment.family.draws or task.network.config.extra_channels:
    raise InputError("likelihood is of models that draw whole images from noise")
  layout, split_pipeline = experiment.layout, experiment.pipeline(split)
  shards = layout.num_batch_shards
  size = min(data.batch_size, -(-num // shards) * shards)  # no more than is asked for
  rows = layout.local_rows(size)

  def batches():
    for batch in split_pipeline.once(rows, -(-num // size)):
      yield layout.put(batch, size)

  def path(*given):
    with sharding.use(layout):
      return flow.bits_per_dim(task, *given, num_steps)

  # A step at a time: XLA's CPU backend runs gradients of convolutions many times
  # slower inside a loop, and one call for all would be silent for minutes.
  start = numbers.jit(lambda *given: path(*given).start)
  step = numbers.jit(
    lambda state, i, *given: path(*given).step(state, i), donate_argnums=0
  )
  end = numbers.jit(
    lambda state, *given: path(*given).end(state), out_shardings=layout.replicated
  )

  def bits(*given):
    state = start(*given)
    for i in progress.track(range(num_steps), num_steps, "steps of likelihood"):
      state = jax.block_until_ready(step(state, i, *given))
    return end(state, *given)

  return evaluators.BitsPerDim(every, split, num, batches, bits)


def gzip(
  experiment, every: ranges.Whole, split: str = "validation"
) -> evaluators.GzipBaseline:
  """The bar that `gzip -9` sets on the same text."""
  check_split(split)
  if experiment.data.reads != "documents":
    raise InputError("evaluator gzip needs text data; take it out of evaluators")
  return evaluators.GzipBaseline(every, [*cache.texts(experiment.data.source, split)])


def answers(
  experiment,
  every: ranges.Whole,
  split: str = "validation",
  num: ranges.Size = 100,
  max_tokens: ranges.Size = 64,
) -> evaluators.Answers:
  """What the model answers, the likeliest token each time, against what is wanted.

  Args:
    num: questions asked, the same every time.
    max_tokens: longest answer.
  """
  check_split(split)
  if experiment.data.questions is None:
    raise InputError(
      "evaluator answers needs data.name=instructions or infill; take it out of"
      " evaluators"
    )
  sampling = generate.Sampling(max_tokens=max_tokens, temperature=0.0)
  room = experiment.data.length - max_tokens  # no longer than what it has learned
  questions = experiment.data.questions(split, experiment.tokenizer, num, room)
  if not questions:
    raise InputError(
      f"evaluator answers: no question of {split} and max_tokens={max_tokens} fit into"
      f" data.length={experiment.data.length}; raise it"
    )
  questions = sorted(questions, key=lambda question: len(question.prompt))
  writer = text_generator.TextGenerator(
    experiment.task.model, experiment.tokenizer, sampling
  )

  def answer(weights):
    firsts = range(0, len(questions), 16)
    for first in progress.track(firsts, len(firsts), "groups of answers"):
      prompts = [question.prompt for question in questions[first : first + 16]]
      yield from writer.texts(weights, prompts, rng.sample_keys(0, len(prompts)))

  asked = [experiment.tokenizer.decode(question.prompt) for question in questions]
  wanted = [question.answer for question in questions]
  return evaluators.Answers(every, answer, asked, wanted, metrics.answers)


def prompt_accuracy(
  experiment, every: ranges.Whole, num: ranges.Size = 200
) -> evaluators.Measured:
  """How many of `num` images show what was asked for, read by the source's scorer."""
  data = experiment.data
  if "prompt_benchmark" not in sources.gives(data.source):
    raise InputError(
      "evaluator prompt_accuracy needs data.source=digits or shapes; take it out of"
      " evaluators"
    )
  prompt_benchmark, generator = (
    data.source.prompt_benchmark(num, data.image_size),
    experiment.generator(),
  )
  keys = rng.sample_keys(0, len(prompt_benchmark.captions))

  def measure(weights, frozen):
    drawn = generator.images(weights, frozen, prompt_benchmark.captions, keys)
    return {
      **prompt_benchmark.scorer(drawn),
      "real_accuracy": prompt_benchmark.real_accuracy,
    }

  return evaluators.Measured(every, measure)


def _check_draws(experiment, name: str) -> None:
  if not experiment.family.draws:
    raise InputError(
      f"evaluator {name} needs a model that draws; take it out of evaluators"
    )


def fidelity(
  experiment,
  every: ranges.Whole,
  features: features_.Features,
  num: Annotated[int, ranges.Range(2, 2**31 - 1)] = 500,
  split: str = "train",
  seed: ranges.Seed = 0,
) -> evaluators.Measured:
  """Distances of num drawn images from all real ones of a split, in `features`.

  Args:
    num: images drawn, for the captions of the split in turn.
    seed: image i depends on (seed, i).
  """
  check_split(split)
  _check_draws(experiment, "fidelity")
  reference, generator = (experiment.reference_images(split), experiment.generator())
  real, captions = features.of(reference.batches()), reference.captions(num)

  def measure(weights, frozen):
    drawn = image_sets.drawn(generator, weights, frozen, captions, seed)
    return image_sets.compare(features, real, features.of(drawn))

  return evaluators.Measured(every, measure)


def sampling_sweep(
  experiment, every: ranges.Whole, settings: Sequence[Any], of: tuple[str, ...]
) -> evaluators.Measured:
  """Other evaluators of the config under several settings of `sampling`, in one run.

  Sweeps show each of them as a row of its own.

  Args:
    settings: pairs of a label and changes of the sampling block, such as
      ("guidance_scale=2", {"guidance_scale": 2.0}). A label is KEY=VALUE, or several
      with commas between; it stands before the names of what is measured.
    of: names of evaluators of this config.
  """
  blocks = experiment.config["evaluators"]
  if nested := [n for n in of if (blocks.get(n) or {}).get("name") == "sampling_sweep"]:
    raise InputError(
      f"evaluator sampling_sweep: of={nested[0]} is another; name others"
    )
  made = {}
  for pair in settings:
    is_pair = isinstance(pair, list | tuple) and len(pair) == 2
    if not is_pair or "=" not in str(pair[0]) or not isinstance(pair[1], Mapping):
      raise InputError(
        f"evaluator sampling_sweep: settings has {ranges.shown(pair)}; it must be a"
        ' pair like ("guidance_scale=2", {"guidance_scale": 2.0})'
      )
    other = experiment.drawing(pair[1])
    made[pair[0]] = [other.evaluator(name) for name in of]

  def measure(weights, frozen):
    found = {}
    for label, some in made.items():
      for one in some:
        found |= {f"{label}/{name}": value for name, value in one(weights, frozen)}
    return found

  return evaluators.Measured(every, measure)


def samples(
  experiment,
  every: ranges.Whole,
  prompts: tuple[str, ...],
  num: ranges.Size = 4,
  seed: ranges.Seed = 0,
) -> evaluators.Measured:
  """Images of the same prompts and noise at every evaluation, num for each."""
  _check_draws(experiment, "samples")
  if not prompts:
    raise InputError("evaluator samples: prompts=() must not be empty")
  generator = experiment.generator()
  captions = [prompt for prompt in prompts for _ in range(num)]
  index = np.tile(np.arange(num), len(prompts))
  keys = rng.sample_keys(seed, num)[index]

  def draw(weights, frozen):
    images = generator.images(weights, frozen, captions, keys)
    return {"samples": images.reshape(len(prompts), num, *images.shape[1:])}

  return evaluators.Measured(every, draw)


def edits(
  experiment, every: ranges.Whole, num: ranges.Size = 100
) -> evaluators.Measured:
  """`num` edits of the validation split, drawn: did that change, and what else did?"""
  data = experiment.data
  if "before" not in data.abstract_batch():
    raise InputError("evaluator edits needs data.name=edits; take it out of evaluators")
  generator = experiment.generator()
  source = data.source.edits("validation")
  pairs = [source[i] for i in range(min(num, len(source)))]
  if not pairs:
    raise InputError(f"evaluator edits: num={num} of {len(source)} held out is none")
  shape = data.image_size, data.channels
  before, after = (
    np.stack([image_files.to_square(pair[name], *shape) for pair in pairs])
    for name in ("before", "image")
  )
  captions, keys = [pair["caption"] for pair in pairs], rng.sample_keys(0, len(pairs))
  everywhere = np.ones(before.shape[:3], np.bool_)
  read = data.source.edit_scorer(pairs)

  def measure(weights, frozen):
    drawn = generator.edits(weights, frozen, captions, keys, before, everywhere, 1.0)
    return {**metrics.edits(before, after, drawn), **read(drawn)}

  return evaluators.Measured(every, measure)


ALL = (
  likelihood,
  loss,
  by_position,
  gzip,
  answers,
  prompt_accuracy,
  fidelity,
  sampling_sweep,
  samples,
  edits,
)
