"""Evaluators of an experiment: what the blocks of a config's `evaluators` stand for.

Each function takes the experiment and the block's keys, prepares data and compiled
functions, and returns one of `train.evaluators`.
"""

import jax
import numpy as np

from gen_jax import features as features_
from gen_jax import metrics, pictures, prompting, sharding
from gen_jax.data import datasets, sources
from gen_jax.data.digits import digits_dataset_builder, judge
from gen_jax.decoding import generate
from gen_jax.train import evaluators
from gen_jax.types import InputError, unknown


def _check_split(split: str) -> None:
  if split not in ("train", "validation"):
    raise unknown("split (of an evaluator)", split, ("train", "validation"))


def loss(
  experiment,
  every: int,
  split: str = "validation",
  max_batches: int | None = None,
) -> evaluators.LossEvaluator:
  """The task's loss and metrics on a split, the same noise every time."""
  _check_split(split)
  task, layout, data = experiment.task, experiment.layout, experiment.data
  rows = layout.local_rows(data.batch_size)
  split_pipeline = experiment.pipeline(split)

  def batches():
    for batch in split_pipeline.once(rows, max_batches):
      yield layout.put(batch, data.batch_size)

  def sums(weights, frozen, batch, keys):
    with sharding.use(layout):
      return task.loss(weights, frozen, batch, keys, train=False)

  return evaluators.LossEvaluator(every, split, batches, jax.jit(sums))


def gzip(experiment, every: int, split: str = "validation") -> evaluators.GzipBaseline:
  """The bar that `gzip -9` sets on the same text."""
  _check_split(split)
  if experiment.data.reads != "documents":
    raise InputError("evaluator gzip needs text data; take it out of evaluators")
  return evaluators.GzipBaseline(every, experiment.data.source.documents(split))


def answers(
  experiment,
  every: int,
  split: str = "validation",
  num: int = 100,
  max_tokens: int = 64,
) -> evaluators.Answers:
  """What the model answers, the likeliest token each time, against what is wanted.

  Args:
    num: questions asked, the same every time.
    max_tokens: longest answer.
  """
  _check_split(split)
  if not hasattr(experiment.data, "questions"):
    raise InputError(
      "evaluator answers needs data.name=instructions or infill; take it out of"
      " evaluators"
    )
  if num < 1:
    raise InputError(f"evaluator answers: num={num} must be at least 1")
  sampling = generate.Sampling(max_tokens=max_tokens, temperature=0.0)
  room = experiment.data.length - max_tokens  # no longer than what it has learned
  questions = experiment.data.questions(split, experiment.tokenizer, num, room)
  if not questions:
    raise InputError(
      f"evaluator answers: no question of {split} and max_tokens={max_tokens} fit into"
      f" data.length={experiment.data.length}; raise it"
    )
  questions = sorted(questions, key=lambda question: len(question.prompt))
  writer = prompting.Writer(experiment.task.model, experiment.tokenizer, sampling)

  def answer(weights):
    for first in range(0, len(questions), 16):
      prompts = [question.prompt for question in questions[first : first + 16]]
      yield from writer.texts(weights, prompts, prompting.keys(0, len(prompts)))

  wanted = [question.answer for question in questions]
  return evaluators.Answers(every, answer, wanted, metrics.answers)


def prompt_accuracy(
  experiment, every: int, num_per_digit: int = 20, phrase: str = "a handwritten {}"
) -> evaluators.PromptAccuracy:
  """How many digits drawn for `phrase` are read as what it asked for."""
  if not isinstance(experiment.data, datasets.ImageData) or not isinstance(
    experiment.data.source, sources.Digits
  ):
    raise InputError(
      "evaluator prompt_accuracy needs data.source=digits; take it out of evaluators"
    )
  if num_per_digit < 1 or "{}" not in phrase:
    raise InputError(
      f"evaluator prompt_accuracy: num_per_digit={num_per_digit} must be at least 1"
      f" and phrase={phrase!r} must hold {{}}"
    )
  names = digits_dataset_builder.NAMES
  labels = np.repeat(np.arange(len(names)), num_per_digit)
  captions = [phrase.replace("{}", names[label]) for label in labels]
  painter = experiment.painter()
  size = experiment.data.image_size
  judged, real_accuracy = judge.train(experiment.data.source, size)

  def draw(weights, frozen):
    return painter.images(weights, frozen, captions, prompting.keys(0, len(labels)))

  return evaluators.PromptAccuracy(every, draw, labels, judged, real_accuracy)


def _check_draws(experiment, name: str) -> None:
  if not hasattr(experiment.data, "caption_length") or not hasattr(
    experiment.task, "denoiser"
  ):
    raise InputError(
      f"evaluator {name} needs a model that draws; take it out of evaluators"
    )


def fidelity(
  experiment,
  every: int,
  features: features_.Features,
  num: int = 500,
  split: str = "train",
  seed: int = 0,
) -> evaluators.Measured:
  """Distances of num drawn pictures from all real ones of a split, in `features`.

  Args:
    num: pictures drawn, for the captions of the split in turn.
    seed: picture i depends on (seed, i).
  """
  _check_split(split)
  _check_draws(experiment, "fidelity")
  if num < 2:
    raise InputError(f"evaluator fidelity: num={num} must be at least 2")
  gallery, painter = experiment.gallery(split), experiment.painter()
  real, captions = features.of(gallery.batches()), gallery.captions(num)

  def measure(weights, frozen):
    drawn = pictures.drawn(painter, weights, frozen, captions, seed)
    return pictures.compare(features, real, features.of(drawn))

  return evaluators.Measured(every, measure)


def samples(
  experiment, every: int, prompts: tuple[str, ...], num: int = 4, seed: int = 0
) -> evaluators.Measured:
  """Pictures of the same prompts and noise at every evaluation, num for each."""
  _check_draws(experiment, "samples")
  if num < 1 or not prompts:
    raise InputError(
      f"evaluator samples: num={num} must be at least 1 and prompts={prompts} not empty"
    )
  painter = experiment.painter()
  captions = [prompt for prompt in prompts for _ in range(num)]
  index = np.tile(np.arange(num), len(prompts))
  keys = prompting.keys(seed, num)[index]

  def draw(weights, frozen):
    images = painter.images(weights, frozen, captions, keys)
    return {"samples": images.reshape(len(prompts), num, *images.shape[1:])}

  return evaluators.Measured(every, draw)


ALL = (loss, gzip, answers, prompt_accuracy, fidelity, samples)
