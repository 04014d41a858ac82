"""Batches from image stores: exactly once, by any number of processes and threads."""

import itertools

import numpy as np
import pytest

from gen_jax.data import datasets, pipeline, tokenizers
from gen_jax.data.stored import source
from tests.data.stored import images, test_packing

NUM, BATCH = 24, 4


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  home = tmp_path_factory.mktemp("feeding")
  given = test_packing.job(images.folder(home / "in", NUM), held_out=0.0)
  test_packing.packed(home / "s", given)
  return str(home / "s")


def data(path, **changes):
  keys = dict(
    source=source.ImageStore(path),
    image_size=4,
    channels=3,
    batch_size=BATCH,
    tokenizer=tokenizers.plain_bytes,
    caption_length=20,
    flip=True,
    prompts=("caption", "label"),
  )
  return datasets.ImageData(**{**keys, **changes})


def examples(path, seed=0):
  return data(path).pipeline("train", tokenizers.plain_bytes(), seed)


def captions(batch):
  pairs = zip(batch["caption"], batch["caption_mask"], strict=True)
  return [tokenizers.plain_bytes().decode(ids[mask].tolist()) for ids, mask in pairs]


def test_each_epoch_has_each_image_once_whatever_the_processes(path):
  """1, 2 and 4 processes in turn, killed and started again: three epochs."""
  made_by, seen, orders = itertools.cycle([1, 2, 4]), [], []
  for step in range(3 * NUM // BATCH):
    num = next(made_by)
    for host in range(num):
      part = slice(host * BATCH // num, (host + 1) * BATCH // num)
      (batch,) = itertools.islice(examples(path).stream(step, part), 1)
      seen += captions(batch)
    if len(seen) == NUM:
      assert len(set(seen)) == NUM
      orders.append(tuple(seen))
      seen = []
  assert len(set(orders)) == 3


@pytest.mark.parametrize("readers", [2, 64])
def test_threads_change_no_ordered_pass(path, readers):
  one = examples(path)
  passes = [
    list(pipeline.Pipeline(one.examples, one.transform, 5, one.seed, num).once(part))
    for num in (0, readers)
    for part in (None, slice(2, 5))
  ]
  for want, found in ((passes[0], passes[2]), (passes[1], passes[3])):
    assert len(want) == len(found) == 5
    for pair in zip(want, found, strict=True):
      assert all(np.array_equal(pair[0][name], pair[1][name]) for name in pair[0])
  assert [batch["weights"].tolist() for batch in passes[2]][-1] == [1, 1, 1, 1, 0]


@pytest.mark.parametrize("readers", [1, 3, 64])
@pytest.mark.parametrize("part", [slice(0, 4), slice(2, 4), slice(1, 2)])
def test_threads_change_no_batch(path, readers, part):
  one = examples(path)
  many = pipeline.Pipeline(one.examples, one.transform, BATCH, one.seed, readers)
  for i, batch in enumerate(itertools.islice(many.stream(3, part), 8)):
    want = one.batch(3 + i, part)
    assert batch.keys() == want.keys()
    for name in want:
      np.testing.assert_array_equal(batch[name], want[name])
      assert batch[name].dtype == want[name].dtype


def test_a_store_gives_the_batches_of_a_data_set(path):
  made = data(path)
  batch = examples(path).batch(0)
  abstract = made.abstract_batch()
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
    k: (v.shape, v.dtype) for k, v in abstract.items()
  }
  assert sorted(made.texts()) == sorted(c for _, c, _ in images.all_of(NUM))
  assert "not square" in made.remark()
