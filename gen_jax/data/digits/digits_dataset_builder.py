"""Captioned handwritten digits as a TFDS data set, without TensorFlow.

1,797 grey 8x8 images by 43 writers (Alpaydin & Kaynak 1998, UCI 'Optical Recognition
of Handwritten Digits', as shipped with scikit-learn). Every fifth is the test split.
"""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from gen_jax.data.digits import NAMES

PHRASES = (
  "a handwritten {}",
  "the digit {}",
  "{}",
  "a picture of the number {}",
  "somebody wrote a {}",
)


class Builder(tfds.core.GeneratorBasedBuilder):
  """Features: image [8, 8, 1] uint8, label, and a caption from five templates."""

  VERSION = tfds.core.Version("1.0.1")

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(8, 8, 1)),
          "label": tfds.features.ClassLabel(names=NAMES),
          "caption": tfds.features.Text(),
        }
      ),
      homepage="https://archive.ics.uci.edu/dataset/80",
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    return {
      "train": self._generate_examples(False),
      "test": self._generate_examples(True),
    }

  def _generate_examples(self, test: bool):
    from sklearn import datasets  # imported here: it costs a second

    digits = datasets.load_digits()
    for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
      if (i % 5 == 4) != test:
        continue
      png = io.BytesIO()
      pixels = np.round(image * (255.0 / 16.0)).astype(np.uint8)
      Image.fromarray(pixels).save(png, format="PNG")
      png.seek(0)
      caption = PHRASES[i // 5 % len(PHRASES)].format(NAMES[label])
      yield i, {"image": png, "label": int(label), "caption": caption}
