"""Images in batches: real ones of a split, those of a model, and how they compare."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from gen_jax import rng
from gen_jax.data import image_files
from gen_jax.evaluation import features as features_
from gen_jax.evaluation import fidelity
from gen_jax.inference import image_generator
from gen_jax.system import progress
from gen_jax.tasks import autoencoder, diffusion
from gen_jax.types import Params, PyTree

_BATCH = 50


@dataclasses.dataclass(frozen=True, eq=False)
class ReferenceImages:
  """Real images as a model is shown them, in one order for all time.

  Attributes:
    examples: of a split.
    size, channels: of the images once they are cut and resized.
    class_names: of a model of classes; None: of captions.
  """

  examples: Sequence
  size: int
  channels: int
  class_names: Sequence[str] | None = None

  def __len__(self) -> int:
    return len(self.examples)

  def _example(self, i: int):
    return self.examples[int(self._order[i % len(self)])]

  def __post_init__(self):
    order = np.random.default_rng(0).permutation(len(self.examples))
    object.__setattr__(self, "_order", order)

  def captions(self, num: int) -> list[str]:
    """Those of the first num images, or their classes; again and again if need be."""
    examples = map(self._example, range(num))
    if self.class_names is not None:
      return [self.class_names[example["label"]] for example in examples]
    return [example["caption"] for example in examples]

  def images(self, indices: Sequence[int]) -> np.ndarray:
    """uint8 [n, size, size, channels]."""
    found = (self._example(i)["image"] for i in indices)
    return np.stack([image_files.to_square(x, self.size, self.channels) for x in found])

  def batches(self, num: int | None = None) -> Iterator[np.ndarray]:
    """The first num images (default: all), uint8 [n, size, size, channels]."""
    num = len(self) if num is None else min(num, len(self))
    firsts = range(0, num, _BATCH)
    for first in progress.track(firsts, len(firsts), "batches of real images"):
      yield self.images(range(first, min(first + _BATCH, num)))

  def sha256(self) -> str:
    """Of all pixels and captions, in order."""
    digest = hashlib.sha256()
    for batch in self.batches():
      digest.update(batch.tobytes())
    digest.update("\n".join(self.captions(len(self))).encode())
    return digest.hexdigest()


def drawn(
  generator: image_generator.ImageGenerator,
  weights: Params,
  frozen: PyTree,
  captions: Sequence[str],
  seed: int,
  begin: int = 0,
) -> Iterator[np.ndarray]:
  """uint8 [n, H, W, C]; image i depends on captions[i], seed and i alone.

  Args:
    begin: number of batches to leave out.
  """
  size = min(generator.batch_size, len(captions))
  firsts, total = range(begin * size, len(captions), size), -(-len(captions) // size)
  for first in progress.track(firsts, total, "batches drawn", begin):
    some = captions[first : first + size]
    filled = [*some, *[some[-1]] * (size - len(some))]
    keys = rng.sample_keys(seed, size, first)
    yield generator.images(weights, frozen, filled, keys)[: len(some)]


def of_noise(
  task: diffusion.Diffusion, frozen: PyTree, shape: tuple[int, ...], num: int, seed: int
) -> Iterator[np.ndarray]:
  """uint8 [n, H, W, C]: what the codec decodes from standard normal latents of `shape`.

  The bar for a model of latents: all that it knows is what these lack.
  """
  decode = jax.jit(lambda f, keys: task.codec.decode(f, rng.normal(keys, shape)))
  for first in range(0, num, _BATCH):
    batch = decode(frozen, rng.sample_keys(seed, _BATCH, first))
    yield image_generator.to_uint8(batch)[: num - first]


def reconstructed(
  task: autoencoder.Autoencode, weights: Params, batches: Iterator[np.ndarray]
) -> Iterator[np.ndarray]:
  """Each of uint8 [n, H, W, C] again, by way of the autoencoder's posterior mean."""
  decode = jax.jit(lambda w, x: task.autoencoder.apply({"params": w}, x))
  for batch in batches:
    filled = np.resize(batch, (_BATCH, *batch.shape[1:])).astype(np.float32)
    found = decode(weights["autoencoder"], filled / 127.5 - 1.0)
    yield image_generator.to_uint8(found)[: len(batch)]


def compare(
  features: features_.Features, real: np.ndarray, other: np.ndarray
) -> dict[str, float]:
  """`fidelity.compare` of feature rows [N, F], named after the features.

  Images are drawn for the captions of the first real ones, but the blocks of a kernel
  distance must know nothing of each other: real ones are taken from the end.
  """
  own = features.own_names
  found = fidelity.compare(real[::-1], other)
  return {f"{features.name}/{own.get(k, k)}": value for k, value in found.items()}


def memorisation(
  features: features_.Features,
  training: np.ndarray,
  held_out: np.ndarray,
  other: np.ndarray,
) -> tuple[dict[str, float], np.ndarray]:
  """How near drawn images are to the training set, compared with held-out images.

  Args:
    training, held_out, other: feature rows [N, F]; there may be none held out.

  Returns:
    memorised (see `fidelity.memorised`), the median distance to the nearest training
    image, of drawn and of held-out images, and the share of drawn ones that are
    nearer than that of the latter; and the three nearest of each drawn one, [N, 3].
  """
  distances, index = fidelity.nearest(other, training, 3)
  found = {
    "memorised": fidelity.memorised(distances),
    "nearest": float(np.median(distances[:, 0])),
  }
  if len(held_out):
    usual = float(np.median(fidelity.nearest(held_out, training)[0]))
    nearer = float(np.mean(distances[:, 0] < usual))
    found |= {"nearest_held_out": usual, "nearer_than_held_out": nearer}
  return {f"{features.name}/{name}": value for name, value in found.items()}, index


def pairs(
  made: Iterator[np.ndarray],
  features: features_.Features,
  reference: ReferenceImages,
  num: int,
) -> dict[str, float]:
  """PSNR (from 11 pixels on SSIM) against what each was made from, and `compare`.

  Args:
    made: batches as those of `reference.batches(num)`, each image made from that one.
  """
  measures = {"psnr": fidelity.psnr}
  if reference.size >= 11:
    measures["ssim"] = fidelity.ssim
  values = {name: [] for name in measures}

  def watched():
    for real, batch in zip(reference.batches(num), made, strict=True):
      for name, measure in measures.items():
        values[name].extend(measure(real, batch))
      yield batch

  rows = features.of(watched())
  found = compare(features, features.of(reference.batches(num)), rows)
  return {**{name: float(np.mean(v)) for name, v in values.items()}, **found}
