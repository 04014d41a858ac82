"""Evaluators: frozen, with a cadence, called with (weights, frozen), yielding numbers.

They know nothing of the loop; what they need is passed to them as functions. One may
yield images, uint8 [rows, columns, H, W, C], which writers keep or leave.
"""

import dataclasses
import gzip
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import jax
import numpy as np

from gen_jax import rng, tree
from gen_jax.tasks import base
from gen_jax.types import Array, Batch, InputError, Params, PyTree


class Evaluator(Protocol):
  """Yields (name, value) for a set of weights: a number, or images.

  `every` is the number of steps between evaluations; 0 is at the end alone.
  """

  every: int

  def __call__(self, weights: Params, frozen: PyTree) -> Iterator[tuple[str, float]]:
    """Evaluates."""
    ...


# Measures by the last part of their names: a figure that is neither is no goal.
LOWER_IS_BETTER = (
  *("loss", "perplexity", "bits_per_byte", "bits_per_dim", "mse_eps", "mse", "l1"),
  *("kl", "features", "hinge", "frechet", "kernel", "fid", "kid", "inside", "outside"),
)
HIGHER_IS_BETTER = (
  *("accuracy", "prompt_accuracy", "exact_match", "rouge1", "rouge2", "rougeL"),
  *("bleu", "chrf", "psnr", "ssim", "precision", "recall", "changed", "kept"),
  *("place", "size", "colour", "shape"),
)


def cost(name: str, value: float) -> float:
  """A figure such that lower is better: itself, or its negative.

  >>> cost('validation/loss', 2.0), cost('answers/bleu', 30.0)
  (2.0, -30.0)

  Raises:
    InputError: nobody knows which is better.
  """
  last = name.split("/")[-1]
  if last not in LOWER_IS_BETTER + HIGHER_IS_BETTER:
    raise InputError(
      f"train.monitor={name}: whether lower or higher is better is not known; monitor"
      f" another metric ({', '.join(LOWER_IS_BETTER + HIGHER_IS_BETTER)}), or add it to"
      " gen_jax/train/evaluators.py"
    )
  return -value if last in HIGHER_IS_BETTER else value


@dataclasses.dataclass(frozen=True, eq=False)
class LossEvaluator:
  """The task's loss and metrics over a whole split, as one mean.

  Noise and times are drawn with keys fixed by batch and row, so that two evaluations
  of the same weights agree to the bit.

  Attributes:
    every: steps between evaluations.
    prefix: put before each name.
    batches: one pass over the split, last batch padded with zero weights.
    loss: jitted (weights, frozen, batch, keys [B]) -> LossOut, in evaluation mode.
  """

  every: int
  prefix: str
  batches: Callable[[], Iterator[Batch]]
  loss: Callable[[Params, PyTree, Batch, Array], base.LossOut]

  def __call__(self, weights: Params, frozen: PyTree) -> Iterator[tuple[str, float]]:
    total = None
    for i, batch in enumerate(self.batches()):
      batch_size = jax.tree.leaves(batch)[0].shape[0]
      keys = rng.per_example(jax.random.fold_in(jax.random.key(0), i), batch_size)
      out = self.loss(weights, frozen, batch, keys)
      out = {"loss": out.loss, **out.metrics}
      total = out if total is None else jax.tree.map(lambda a, b: a + b, total, out)
    for name, mean in jax.device_get(total or {}).items():
      yield f"{self.prefix}/{name}", float(mean.value)


@dataclasses.dataclass(frozen=True, eq=False)
class BitsPerDim:
  """Bits that images cost, and their mean's standard error; keys as in LossEvaluator.

  Attributes:
    every: steps between evaluations.
    prefix: put before each name.
    num: the first images of `batches` that count.
    batches: one pass over them, padded with zero weights.
    bits: (weights, frozen, batch, keys [B]) -> bits [B], whole on every host.
  """

  every: int
  prefix: str
  num: int
  batches: Callable[[], Iterator[Batch]]
  bits: Callable[[Params, PyTree, Batch, Array], Array]

  def __call__(self, weights: Params, frozen: PyTree) -> Iterator[tuple[str, float]]:
    found = []
    for i, batch in enumerate(self.batches()):
      keys = rng.per_example(
        jax.random.fold_in(jax.random.key(0), i), batch["weights"].shape[0]
      )
      bits = np.asarray(self.bits(weights, frozen, batch, keys))
      found.extend(bits[tree.fetch(batch["weights"]) > 0])
    found = np.asarray(found[: self.num], np.float64)
    yield f"{self.prefix}/bits_per_dim", float(found.mean())
    yield f"{self.prefix}/bits_per_dim_stderr", float(found.std() / len(found) ** 0.5)
    yield f"{self.prefix}/bits_per_dim_num", float(len(found))


@dataclasses.dataclass(frozen=True, eq=False)
class WithWeights:
  """An evaluator of other weights than those that are trained: adapters, merged.

  Attributes:
    evaluator: what evaluates them.
    view: (trained weights, frozen) -> (weights, frozen) of the evaluator.
  """

  evaluator: Evaluator
  view: Callable[[Params, PyTree], tuple[Params, PyTree]]

  @property
  def every(self) -> int:
    return self.evaluator.every

  def __call__(self, weights: Params, frozen: PyTree) -> Iterator[tuple[str, float]]:
    return self.evaluator(*self.view(weights, frozen))


@dataclasses.dataclass(frozen=True, eq=False)
class GzipBaseline:
  """What `gzip -9` needs for the same text: the bar for a small language model."""

  every: int
  documents: Sequence[str]

  def __call__(self, weights: Params, frozen: PyTree) -> Iterator[tuple[str, float]]:
    del weights, frozen
    text = "\n\n".join(self.documents).encode()
    yield "gzip/bits_per_byte", 8.0 * len(gzip.compress(text, 9)) / len(text)


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
  """How near a model's answers come to those that are wanted.

  Attributes:
    every: steps between evaluations.
    answer: weights -> answers, one per wanted answer.
    wanted: the references.
    compare: (answers, wanted) -> {name: value}.
  """

  every: int
  answer: Callable[[Params], Iterable[str]]
  wanted: Sequence[str]
  compare: Callable[[Sequence[str], Sequence[str]], Mapping[str, float]]

  def __call__(self, weights: Params, frozen: PyTree) -> Iterator[tuple[str, float]]:
    del frozen
    found = self.compare(list(self.answer(weights)), self.wanted)
    for name, value in found.items():
      yield f"answers/{name}", value


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
  """Whatever a function finds: numbers, or images to look at.

  Attributes:
    every: steps between evaluations.
    measure: (weights, frozen) -> {name: number or uint8 [rows, columns, H, W, C]}.
  """

  every: int
  measure: Callable[[Params, PyTree], Mapping[str, float | np.ndarray]]

  def __call__(
    self, weights: Params, frozen: PyTree
  ) -> Iterator[tuple[str, float | np.ndarray]]:
    yield from self.measure(weights, frozen).items()
