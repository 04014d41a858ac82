"""An independent classifier of digits: scikit-learn's SVM, trained on real images."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from gen_jax import errors
from gen_jax.data import image_files, sources
from gen_jax.data.digits import NAMES
from gen_jax.errors import InputError

Scorer = Callable[[np.ndarray], np.ndarray]


def _features(images: np.ndarray) -> np.ndarray:
  """uint8 [N, H, W, 1] -> float [N, 64]: averaged down to 8x8, 0 .. 16."""
  small = [
    np.asarray(Image.fromarray(x[..., 0]).resize((8, 8), Image.Resampling.BOX))
    for x in images
  ]
  return np.stack(small).reshape(len(images), 64) / 255.0 * 16.0


def train(source: sources.ImageSource, image_size: int) -> tuple[Scorer, float]:
  """Fits on the source's training split, resized like generated images.

  Returns:
    The classifier, uint8 [N, image_size, image_size, 1] -> labels int [N], and its
    accuracy on the held-out split.
  """
  with errors.extra("data"):
    from sklearn import svm  # imported here: it costs a second

  def split(name):
    examples = source.examples(name)
    rows = [examples[i] for i in range(len(examples))]
    images = np.stack([image_files.to_square(r["image"], image_size, 1) for r in rows])
    return _features(images), np.array([r["label"] for r in rows])

  classifier = svm.SVC(gamma=0.001, C=10.0).fit(*split("train"))
  features, labels = split("validation")
  real_accuracy = float(np.mean(classifier.predict(features) == labels))
  return lambda images: classifier.predict(_features(images)), real_accuracy


def hidden(source: sources.ImageSource) -> tuple[Scorer, list[np.ndarray]]:
  """Features of a multilayer perceptron trained on the source's training split.

  Returns:
    uint8 [N, H, W, 1] -> float [N, 64], its hidden layer; and that layer's weights.
  """
  with errors.extra("data"):
    from sklearn import neural_network  # imported here: it costs a second

  examples = source.examples("train")
  rows = [examples[i] for i in range(len(examples))]
  inputs = _features(np.stack([r["image"] for r in rows])) / 16.0
  network = neural_network.MLPClassifier((64,), tol=5e-3, random_state=0)
  network.fit(inputs, np.array([r["label"] for r in rows]))
  kernel, bias = network.coefs_[0], network.intercepts_[0]

  def read(images):
    if images.shape[-1] != 1:
      raise InputError(
        f"features of digits need images of 1 channel, got {images.shape[-1]}"
      )
    return np.maximum(_features(images) / 16.0 @ kernel + bias, 0.0)

  return read, [kernel, bias]


def prompt_benchmark(
  source: sources.ImageSource, num: int, image_size: int
) -> sources.PromptBenchmark:
  """`num` prompts, each digit in turn, scored by the share classified as prompted."""
  labels = np.arange(num) % len(NAMES)
  read, real_accuracy = train(source, image_size)
  return sources.PromptBenchmark(
    [f"a handwritten {NAMES[label]}" for label in labels],
    lambda images: {"prompt_accuracy": float(np.mean(read(images) == labels))},
    real_accuracy,
  )
