"""Galleries, features, and images drawn in batches that do not show."""

import types

import jax
import numpy as np
import pytest

from gen_jax.diffusion import codec
from gen_jax.evaluation import features, fidelity, image_sets
from gen_jax.inference import image_generator
from gen_jax.types import InputError


def reference(num=7, seed=0, **changes):
  generator = np.random.default_rng(seed)
  examples = [
    {"image": generator.integers(0, 256, (8, 8, 1), np.uint8), "caption": f"c{i}"}
    for i in range(num)
  ]
  examples[0] |= changes
  return image_sets.ReferenceImages(examples, 8, 1)


def test_an_order_for_all_time(monkeypatch):
  """Captions and images go together, and begin again where they end."""
  whole = reference()
  captions = whole.captions(16)
  assert sorted(captions[:7]) == [f"c{i}" for i in range(7)]
  assert captions[7:14] == captions[:7] and captions[14:] == captions[:2]
  images = np.concatenate(list(whole.batches()))
  at = int(captions[3][1:])
  np.testing.assert_array_equal(images[3], whole.examples[at]["image"])
  monkeypatch.setattr(image_sets, "_BATCH", 3)
  np.testing.assert_array_equal(np.concatenate(list(whole.batches(5))), images[:5])
  assert reference().sha256() == whole.sha256()


def test_the_hash_sees_pixels_and_captions():
  one = reference().examples[0]["image"].copy()
  one[3, 3] ^= 1
  hashes = {reference().sha256(), reference(image=one).sha256()}
  assert len(hashes | {reference(caption="d").sha256()}) == 3


def test_features_of_batches_are_those_of_the_whole():
  whole = next(reference().batches())
  seen = features.pixels(4)
  parts = seen.of([whole[:2], whole[2:]])
  np.testing.assert_array_equal(parts, seen.of([whole]))
  assert parts.shape == (7, 16) and seen.name == "pixels_4"
  flat = np.full((1, 8, 8, 3), 51, np.uint8)
  np.testing.assert_allclose(seen.of([flat]), 0.2)
  with pytest.raises(InputError, match="no images"):
    seen.of([])


def test_features_of_digits_tell_digits_apart():
  """Nearest neighbours in them are of the same digit far more often than by chance."""
  from gen_jax.data.digits import source as digits

  seen, again = features.digits(), features.digits()
  assert seen.sha256 == again.sha256 and len(seen.sha256) == 64
  rows, labels = {}, {}
  for split in ("train", "validation"):
    examples = digits.Digits().examples(split)
    found = [examples[i] for i in range(300)]
    rows[split] = seen.of([np.stack([e["image"] for e in found])])
    labels[split] = np.array([e["label"] for e in found])
  _, index = fidelity.nearest(rows["validation"], rows["train"])
  right = labels["train"][index[:, 0]] == labels["validation"]
  assert right.mean() > 0.85
  with pytest.raises(InputError, match="1 channel, got 3"):
    seen.of([np.zeros((1, 8, 8, 3), np.uint8)])


class Dots:
  """A generator whose image i shows its caption and its key, and nothing else."""

  def __init__(self, batch_size):
    self.batch_size = batch_size

  def images(self, params, frozen, captions, keys):
    del params, frozen
    assert len(captions) == len(keys) <= self.batch_size
    keys = np.asarray(jax.random.key_data(keys)).astype(np.uint8)
    shown = np.array([[int(caption)] for caption in captions], np.uint8)
    return np.concatenate([shown, keys], 1)[:, None, None]


def test_images_do_not_depend_on_batches_nor_on_how_many():
  captions = [str(i) for i in range(11)]

  def draw(size, num):
    found = image_sets.drawn(Dots(size), None, None, captions[:num], 3)
    return np.concatenate(list(found))

  whole = draw(50, 11)
  assert whole[:, 0, 0, 0].tolist() == list(range(11))
  assert len(np.unique(whole[:, 0, 0, 1:], axis=0)) == 11
  np.testing.assert_array_equal(draw(4, 11), whole)
  np.testing.assert_array_equal(draw(4, 6), whole[:6])


def test_random_latents_go_through_the_codec():
  """x = 0.1 + z / 4 for z standard normal: mean and spread of the pixels."""
  task = types.SimpleNamespace(codec=codec.affine(0.1, 0.25))

  def found(num):
    return np.concatenate(list(image_sets.of_noise(task, {}, (8, 8, 1), num, 5)))

  whole = found(60)
  assert whole.shape == (60, 8, 8, 1)
  assert whole.mean() == pytest.approx(127.5 * 1.1, abs=2)
  assert whole.std() == pytest.approx(127.5 * 0.25, rel=0.05)
  np.testing.assert_array_equal(found(3), whole[:3])


def test_to_uint8_rounds_and_cuts_off():
  x = np.array([-2.0, -1.0, -0.5, 0.0, 1.0, 1.5])
  assert image_generator.to_uint8(x).tolist() == [0, 0, 64, 128, 255, 255]


def test_memorisation_of_copies_and_of_new_images():
  """Half are copies; held-out ones are as far as the other half."""
  seen = features.pixels()
  generator = np.random.default_rng(0)
  training, held_out, new = generator.normal(size=(3, 40, 30))
  other = np.concatenate([training[:20], new[:20]])
  found, index = image_sets.memorisation(seen, training, held_out, other)
  assert index[:20, 0].tolist() == list(range(20)) and index.shape == (40, 3)
  assert found["pixels_16/memorised"] == 0.5
  assert 0.5 < found["pixels_16/nearer_than_held_out"] < 1.0
  assert found["pixels_16/nearest"] < found["pixels_16/nearest_held_out"]


def test_pairs_do_not_make_the_kernel_distance_negative():
  """Copies in their order: the same block twice would be nearer than by chance."""
  rows = np.random.default_rng(0).normal(size=(400, 6))
  found = image_sets.compare(features.pixels(), rows, rows)
  bias, error = found["pixels_16/kernel"], found["pixels_16/kernel_error"]
  assert abs(bias) < 3 * error
  assert fidelity.kernel_distance(rows, rows)[0] < -3 * error
