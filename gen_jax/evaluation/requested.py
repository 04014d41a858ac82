"""Evaluators on other data: text and choices in files, and images against real ones.

`about` of each says what its numbers hold for: two that differ there do not compare.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import jax
import numpy as np

import gen_jax
from gen_jax import ranges
from gen_jax.data import folders as image_folders
from gen_jax.data import image_files, sources
from gen_jax.evaluation import evaluators as own
from gen_jax.evaluation import features as features_
from gen_jax.evaluation import image_sets, scoring
from gen_jax.system import files, folders, globs
from gen_jax.types import InputError, Params, PyTree

Made = Callable[[Params, PyTree, int], Iterator[np.ndarray]]
_SHOWN = 8  # images on the sheet of nearest neighbours


@dataclasses.dataclass(frozen=True, eq=False)
class Lasting:
  """Numbers that take long: a command that was interrupted continues.

  Attributes:
    every, about: see `evaluators.Measured`.
    measure: (weights, frozen, keep) -> {name: number or images}.
  """

  every: int
  measure: Callable[[Params, PyTree, folders.Keep], dict[str, Any]]
  about: dict[str, Any]

  def __call__(
    self, weights: Params, frozen: PyTree, keep: folders.Keep = folders.nothing_kept
  ) -> Iterator[tuple[str, float | np.ndarray]]:
    """Measures; `keep` stores the pieces of work that are done."""
    yield from self.measure(weights, frozen, keep).items()


def text(
  experiment, every: ranges.Whole, pattern: str, stride: ranges.Size | None = None
) -> Lasting:
  """Perplexity and bits per byte of the files that match a pattern.

  Args:
    stride: new tokens per window, see `scoring.windows`; None: half the context.
  """
  scorer, tokenizer = experiment.family.scorer(experiment), experiment.tokenizer
  context = scorer.model.config.max_length
  stride = max(1, context // 2) if stride is None else stride
  scoring.windows([], context, stride)  # refuses a stride that cannot be
  paths = globs.matching(pattern)
  texts = list(map(files.read, paths))
  if not any(texts):
    raise InputError(f"--text {pattern} is empty; give a file with text")

  def measure(params, frozen, keep):
    del frozen
    score = scoring.score_texts(scorer, params, tokenizer, texts, stride, keep)
    names = ("perplexity", "bits_per_byte", "num_tokens", "num_bytes")
    return {f"text/{name}": getattr(score, name) for name in names}

  about = _about("text", scorer, tokenizer, paths) | {"text/stride": stride}
  return Lasting(every, measure, about)


def choices(experiment, every: ranges.Whole, pattern: str) -> Lasting:
  """Accuracy of the likeliest choice, over the questions of JSONL files."""
  scorer, tokenizer = experiment.family.scorer(experiment), experiment.tokenizer
  paths = globs.matching(pattern)
  questions = [
    question
    for path in paths
    for question in scoring.read_questions(files.read(path), str(path))
  ]

  def measure(params, frozen, keep):
    del frozen
    found = scoring.score_questions(scorer, params, tokenizer, questions, keep)
    return {f"choices/{name}": value for name, value in found.items()}

  return Lasting(every, measure, _about("choices", scorer, tokenizer, paths))


def _about(
  kind: str, scorer: scoring.Scorer, tokenizer, paths: Sequence[pathlib.Path]
) -> dict[str, Any]:
  """The model's part, and the files'."""
  return {
    "dtype": scorer.model.config.dtype,
    "context": scorer.model.config.max_length,
    "tokenizer": type(tokenizer.encoding).__name__,
    "tokenizer_sha256": tokenizer.fingerprint,
    "gen_jax": gen_jax.__version__,
    "jax": jax.__version__,
    f"{kind}/path": ", ".join(map(str, paths))
    if len(paths) < 4
    else f"{paths[0]}, ...",
    f"{kind}/num_files": len(paths),
    f"{kind}/sha256": _sha256(paths),
  }


def _sha256(paths: Sequence[pathlib.Path]) -> str:
  """Of the file; of several, that of their hashes, one a line, as sha256sum does it."""
  hashes = list(map(files.sha256, paths))
  if len(hashes) == 1:
    return hashes[0]
  return hashlib.sha256("".join(f"{h}\n" for h in hashes).encode()).hexdigest()


def images(
  experiment,
  every: ranges.Whole,
  features: features_.Features,
  num: Annotated[int, ranges.Range(2, 2**20)] | None = None,
  folder: str | None = None,
  split: str | None = None,
  seed: ranges.Seed = 0,
  baseline: bool = False,
) -> Lasting:
  """How near images come to real ones of a split, in `features`.

  Args:
    num: how many are drawn for captions of the split; of an autoencoder: drawn again.
    folder: images that are there already, instead.
    split: 'train', or 'validation'; None: the latter of an autoencoder.
    seed: image i depends on (seed, i).
    baseline: also numbers of random latents, decoded.
  """
  if (num is None) == (folder is None):
    raise InputError("give one of --images N and --folder DIR")
  again = experiment.family.encoder is not None and folder is None
  if baseline and (folder or again):
    raise InputError("--baseline is for --images of a model that draws")
  split = split or ("validation" if again else "train")
  own.check_split(split)
  reference = experiment.reference_images(split)
  if folder is not None:
    made, protocol = _in_folder(reference, folder)
  else:
    made, protocol = (_again if again else _drawn)(experiment, reference, num, seed)
  protocol |= {
    "features": features.name,
    "features_sha256": features.sha256,
    "split": split,
    "reference_num": len(reference),
    "reference_sha256": reference.sha256(),
    "resize": f"centre crop, bilinear, {reference.size}x{reference.size}",
    "channels": reference.channels,
  }
  protocol = json.loads(json.dumps(protocol))  # as it will be read
  held_out = experiment.reference_images("validation") if split == "train" else None

  def measure(params, frozen, keep):
    drawn = keep(functools.partial(made, params, frozen))
    if again:
      return image_sets.pairs(drawn, features, reference, protocol["num"])
    real = features.of(reference.batches())
    found = _of_set(drawn, features, reference, real, held_out)
    if baseline:
      how = (frozen, experiment.generator().shape, num, seed)
      noise = image_sets.of_noise(experiment.task, *how)
      noise = image_sets.compare(features, real, features.of(noise))
      found |= {f"random_latents/{name}": value for name, value in noise.items()}
    return found

  about = {"gen_jax": gen_jax.__version__, "protocol": protocol}
  return Lasting(every, measure, about)


def _drawn(experiment, reference, num: int, seed: int) -> tuple[Made, dict[str, Any]]:
  """Images for the captions of a reference, and their part of the protocol."""
  if experiment.sampling.size not in (None, (reference.size, reference.size)):
    raise InputError(
      f"sampling.size={experiment.sampling.size}: figures are of images of"
      f" data.image_size={reference.size}; set it to None"
    )
  generator, captions = experiment.generator(), reference.captions(num)

  def made(params, frozen, begin):
    return image_sets.drawn(generator, params, frozen, captions, seed, begin)

  return made, {"num": num, "seed": seed, "sampling": experiment.config["sampling"]}


def _again(experiment, reference, num: int, seed: int) -> tuple[Made, dict[str, Any]]:
  """Images of a reference, decoded from their codes."""
  del seed
  num = min(num, len(reference))

  def made(params, frozen, begin):
    del frozen
    real = itertools.islice(reference.batches(num), begin, None)
    return image_sets.reconstructed(experiment.task, params, real)

  return made, {"num": num}


def _in_folder(reference, folder: str) -> tuple[Made, dict[str, Any]]:
  """All images of a folder but the sheets that commands add."""
  found = image_folders.images_in(folder, "--folder")
  paths = [path for path in found if path.name not in image_folders.SHEETS]
  if len(paths) < 2:
    raise InputError(f"--folder {folder} needs two images at least")
  found = sources.Mapped(paths, lambda path: {"image": image_files.open_image(path)})
  found = dataclasses.replace(reference, examples=found)

  def made(params, frozen, begin):
    del params, frozen
    return itertools.islice(found.batches(), begin, None)

  return made, {"num": len(paths)}


def _of_set(made, features, reference, real, held_out) -> dict[str, Any]:
  """Distances of all images together; of each to the training set.

  'nearest' are the first images, each with the three of training that are nearest.
  """
  shown = []

  def watched():
    for batch in made:
      shown.extend(batch[: _SHOWN - len(shown)])
      yield batch

  rows = features.of(watched())
  found = image_sets.compare(features, real, rows)
  if held_out is not None:
    others = features.of(held_out.batches()) if len(held_out) else real[:0]
    more, index = image_sets.memorisation(features, real, others, rows)
    sheet = [np.stack([x, *reference.images(i)]) for x, i in zip(shown, index)]  # noqa: B905
    found |= {**more, "nearest": np.stack(sheet)}
  return found


ALL = (text, choices, images)
