"""Evaluators: dataclasses called with (weights, frozen) that yield named numbers.

They do not depend on the loop; functions are passed to them. They may also yield
images, uint8 [rows, columns, H, W, C], and text, which each writer keeps or drops.
"""

import dataclasses
import gzip
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import rng, tree
from gen_jax.tasks import base
from gen_jax.types import Array, Batch, InputError, Params, PyTree


class Evaluator(Protocol):
  """Yields (name, value) for weights; a value is a number or images.

  `every` is the number of steps between evaluations; 0: only at the end.
  """

  every: int

  def __call__(self, weights: Params, frozen: PyTree) -> Iterator[tuple[str, float]]:
    """Evaluates."""


# Metrics by the last part of their names; others cannot be monitored.
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
  """A metric's value, or its negative, such that lower is better.

  >>> cost('validation/loss', 2.0), cost('answers/bleu', 30.0)
  (2.0, -30.0)

  Raises:
    InputError: a metric in neither list.
  """
  last = name.split("/")[-1]
  if last not in LOWER_IS_BETTER + HIGHER_IS_BETTER:
    raise InputError(
      f"metric {name!r}: it is not known whether lower or higher is better; take one of"
      f" ({', '.join(LOWER_IS_BETTER + HIGHER_IS_BETTER)}), or"
      " add it to gen_jax/train/evaluators.py"
    )
  return -value if last in HIGHER_IS_BETTER else value


@dataclasses.dataclass(frozen=True, eq=False)
class LossEvaluator:
  """The task's loss and metrics, averaged over a whole split.

  Noise and times are drawn with keys fixed by batch and example: two evaluations of the
  same weights are bit-identical.

  Attributes:
    every: steps between evaluations.
    prefix: of each name.
    batches: one pass over the split, the last batch padded with zero weights.
    loss: jitted (weights, frozen, batch, keys [B]) -> LossOut, in evaluation mode.
  """

  every: int
  prefix: str
  batches: Callable[[], Iterator[Batch]]
  loss: Callable[[Params, PyTree, Batch, Array], base.LossOut]

  def _batches(self) -> Iterator[tuple[Batch, Array]]:
    for i, batch in enumerate(self.batches()):
      batch_size = jax.tree.leaves(batch)[0].shape[0]
      yield batch, rng.per_example(jax.random.fold_in(jax.random.key(0), i), batch_size)

  def of_examples(self, weights: Params, frozen: PyTree) -> tuple[np.ndarray, ...]:
    """Summed loss and count of each example of the split, in order: float64 [N] twice.

    A loss and its count are sums over the examples' weights, so what an example adds to
    one is its weights times the gradient with respect to them (Euler's theorem).
    """

    @jax.jit
    def parts(params, frozen, batch, keys):
      def sums(given):
        mean = self.loss(params, frozen, {**batch, "weights": given}, keys).loss
        return jnp.stack([mean.total, mean.count])

      given = batch["weights"]
      _, pull = jax.vjp(sums, given)
      each = [given * pull(one)[0] for one in jnp.eye(2)]
      return jnp.stack([x.reshape(len(x), -1).sum(axis=1) for x in each], axis=1)

    found = [tree.fetch(parts(weights, frozen, *pair)) for pair in self._batches()]
    sums, counts = np.concatenate(found).astype(np.float64).T
    return sums[counts > 0], counts[counts > 0]

  def __call__(self, weights: Params, frozen: PyTree) -> Iterator[tuple[str, float]]:
    total = None
    for batch, keys in self._batches():
      found = self.loss(weights, frozen, batch, keys)
      out = {"loss": found.loss, **found.metrics}
      total = out if total is None else jax.tree.map(lambda a, b: a + b, total, out)
    for name, mean in jax.device_get(total or {}).items():
      yield f"{self.prefix}/{name}", float(mean.value)


@dataclasses.dataclass(frozen=True, eq=False)
class BitsPerDim:
  """Mean bits per dimension of images, and its standard error; keys as LossEvaluator.

  Attributes:
    every: steps between evaluations.
    prefix: of each name.
    num: number of images, the first of `batches`.
    batches: one pass over them, padded with zero weights.
    bits: (weights, frozen, batch, keys [B]) -> bits per dimension [B], on every host.
  """

  every: int
  prefix: str
  num: int
  batches: Callable[[], Iterator[Batch]]
  bits: Callable[[Params, PyTree, Batch, Array], Array]

  def __call__(self, weights: Params, frozen: PyTree) -> Iterator[tuple[str, float]]:
    found: list[np.ndarray] = []
    for i, batch in enumerate(self.batches()):
      keys = rng.per_example(
        jax.random.fold_in(jax.random.key(0), i), batch["weights"].shape[0]
      )
      bits = np.asarray(self.bits(weights, frozen, batch, keys))
      found.extend(bits[tree.fetch(batch["weights"]) > 0])
    each = np.asarray(found[: self.num], np.float64)
    yield f"{self.prefix}/bits_per_dim", float(each.mean())
    yield f"{self.prefix}/bits_per_dim_stderr", float(each.std() / len(each) ** 0.5)
    yield f"{self.prefix}/bits_per_dim_num", float(len(each))


@dataclasses.dataclass(frozen=True, eq=False)
class WithWeights:
  """An evaluator of weights derived from the trained ones, such as merged adapters.

  Attributes:
    evaluator: of the derived weights.
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
  """Bits per byte of `gzip -9` on the same text: a baseline for language models."""

  every: int
  documents: Sequence[str]

  def __call__(self, weights: Params, frozen: PyTree) -> Iterator[tuple[str, float]]:
    del weights, frozen
    text = "\n\n".join(self.documents).encode()
    yield "gzip/bits_per_byte", 8.0 * len(gzip.compress(text, 9)) / len(text)


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
  """Similarity of a model's answers to reference answers, and both as text.

  Attributes:
    every: steps between evaluations.
    answer: weights -> answers, one per reference.
    prompts: the questions, for people.
    wanted: the references.
    compare: (answers, wanted) -> {name: value}.
  """

  every: int
  answer: Callable[[Params], Iterable[str]]
  prompts: Sequence[str]
  wanted: Sequence[str]
  compare: Callable[[Sequence[str], Sequence[str]], Mapping[str, float]]

  def __call__(
    self, weights: Params, frozen: PyTree
  ) -> Iterator[tuple[str, float | str]]:
    del frozen
    given = list(self.answer(weights))
    for name, value in self.compare(given, self.wanted).items():
      yield f"answers/{name}", value
    rows = zip(self.prompts, given, self.wanted, strict=True)
    text = "\n\n".join(_side_by_side(i, *row) for i, row in enumerate(rows, 1))
    yield "answers", text + "\n"


def _side_by_side(number: int, prompt: str, given: str, wanted: str) -> str:
  """An answer next to its reference; whether they are one is said first."""
  verdict = "the same" if given.strip() == wanted.strip() else "another"
  parts = {"prompt": prompt, "answer": given, "reference": wanted}
  told = (f"{name:9} | {text}" for name, text in parts.items())
  told = (text.replace("\n", f"\n{'':9} | ") for text in told)
  return "\n".join((f"{number}: {verdict}", *told))


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
  """Numbers or images that a function computes.

  Attributes:
    every: steps between evaluations.
    measure: (weights, frozen) -> {name: number or uint8 [rows, columns, H, W, C]}.
    about: what else the numbers depend on, in words of JSON.
  """

  every: int
  measure: Callable[[Params, PyTree], Mapping[str, float | np.ndarray]]
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __call__(
    self, weights: Params, frozen: PyTree
  ) -> Iterator[tuple[str, float | np.ndarray]]:
    yield from self.measure(weights, frozen).items()
