"""DreamBooth: a few images among others of their kind, and what they count."""

import jax
import numpy as np
import optax
import pytest
from PIL import Image

from gen_jax import sharding, types
from gen_jax.data import datasets, dreambooth, tokenizers
from gen_jax.models import text_encoder, unet
from gen_jax.tasks import conditioning
from tests import tiny


@pytest.fixture
def folders(tmp_path):
  """Three images of a thing, and ten of its kind as `gen-jax sample` leaves them."""
  for name, num in (("thing", 3), ("kind", 10)):
    (tmp_path / name).mkdir()
    for i in range(num):
      pixels = np.full((4, 4, 3), 10 * i + (name == "kind"), np.uint8)
      Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
  (tmp_path / "kind" / "prompts.json").write_text("{}")
  Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "kind" / "grid.png")
  return tmp_path


def made(folders, **options):
  keys = dict(
    directory=str(folders / "thing"),
    prompt="a sks dog",
    prior_directory=str(folders / "kind"),
    prior_prompt="a dog",
    prior_weight=0.5,
  )
  return dreambooth.DreamBooth(**{**keys, **options})


def test_half_of_an_epoch_is_the_thing_and_half_its_kind(folders):
  source = made(folders)
  train, held = source.examples("train"), source.examples("validation")
  assert len(train) == 18 and len(held) == 1
  values = {caption: [] for caption in ("a sks dog", "a dog")}
  for example in train:
    values[example["caption"]].append(int(example["image"][0, 0, 0]))
    assert example["loss_weight"] == (0.5 if example["caption"] == "a dog" else 1.0)
  assert sorted(values["a sks dog"]) == [0] * 3 + [10] * 3 + [20] * 3
  seen = {*values["a dog"], int(held[0]["image"][0, 0, 0])}
  assert seen == set(range(1, 101, 10)) and len(values["a dog"]) == 9


def test_without_the_kind_there_is_the_thing_alone(folders):
  source = made(folders, prior_directory=None)
  for split in ("train", "validation"):
    assert [e["caption"] for e in source.examples(split)] == ["a sks dog"] * 3


def test_a_batch_weighs_its_examples(folders):
  data = datasets.ImageData(
    made(folders), 4, 3, 6, tokenizers.plain_bytes, 16, prompts=("caption",)
  )
  batch = data.pipeline("train", tokenizers.plain_bytes(), 0).batch(0, range(6))
  is_kind = batch["caption_mask"].sum(-1) < batch["caption_mask"].sum(-1).max()
  np.testing.assert_array_equal(batch["weights"], np.where(is_kind, 0.5, 1.0))
  assert 0 < is_kind.sum() < 6 and batch["weights"].dtype == np.float32


def test_what_cannot_be_is_refused(folders):
  with pytest.raises(types.InputError, match="prior_weight=0"):
    made(folders, prior_weight=0.0)
  with pytest.raises(types.InputError, match="holds no images"):
    made(folders, directory=str(folders)).examples("train")


@pytest.mark.long
def test_the_thing_is_learned_and_with_its_kind_less_of_the_kind_forgotten(tmp_path):
  """The loss of either prompt: before, after the thing alone, after both."""
  draw = np.random.default_rng(0)
  kind = 8 * np.arange(8) + draw.uniform(0, 60, (10, 8, 1))  # darker to the left
  thing = np.repeat(255 - 30 * np.arange(8), 8).reshape(1, 8, 8)  # and to the bottom
  for name, pictures in (("kind", kind), ("thing", thing)):
    (tmp_path / name).mkdir()
    for i, picture in enumerate(np.broadcast_to(pictures, (len(pictures), 8, 8))):
      Image.fromarray(np.uint8(picture)).save(tmp_path / name / f"{i}.png")
  words = tokenizers.plain_bytes()
  task = tiny.diffusion_task(
    network=unet.UNet(unet.Config(1, 8, (1,), 1, (), num_heads=2, num_groups=4)),
    conditioning=conditioning.Text(
      text_encoder.TextEncoder(text_encoder.Config(300, 12, 1, 16, 2)),
      conditioning.Caption(np.zeros((1, 12), np.int32), np.ones((1, 12), bool)),
    ),
  )
  optimizer = optax.adam(1e-2)

  def data(**options):
    source = made(tmp_path, prior_weight=1.0, **options)
    images = datasets.ImageData(
      source, 8, 1, 8, tokenizers.plain_bytes, 12, prompts=("caption",)
    )
    return images.pipeline("train", words, 0)

  @jax.jit
  def step(params, state, batch, key):
    keys = jax.random.split(key, 8)

    def value(p):
      return task.loss(p, {}, batch, keys, train=True).loss.value

    updates, state = optimizer.update(jax.grad(value)(params), state)
    return optax.apply_updates(params, updates), state

  def tune(params, examples, num_steps):
    state = optimizer.init(params)
    for i in range(num_steps):
      key = jax.random.fold_in(jax.random.key(0), i)
      params, state = step(params, state, examples.batch(i, range(8)), key)
    return params

  @jax.jit
  def loss(params, batch, keys):
    return task.loss(params, {}, batch, keys, train=False).loss.value

  of_kind = data(directory=str(tmp_path / "kind"), prompt="a dog", prior_directory=None)
  alone, both = data(prior_directory=None), data()

  def scorer(params):
    """Of the thing's prompt and of its kind's."""
    batches = (examples.batch(0, range(8)) for examples in (alone, of_kind))
    return [
      np.mean([loss(params, batch, tiny.keys(seed)) for seed in range(4)])
      for batch in batches
    ]

  batch = alone.batch(0, range(8))
  base = jax.jit(lambda key: sharding.unbox(task.init(key, batch)))(jax.random.key(0))
  base = tune(base, of_kind, 100)
  before, forgot, kept = (
    scorer(p) for p in (base, tune(base, alone, 40), tune(base, both, 40))
  )
  assert forgot[0] < 0.5 * before[0] and kept[0] < 0.5 * before[0]
  assert forgot[1] - before[1] > 2 * abs(kept[1] - before[1])
