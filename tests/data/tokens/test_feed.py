"""Feeding from stores: exactly once, on any number of processes, and what a row is."""

import collections
import functools
import itertools

import numpy as np
import pytest

from gen_jax import types
from gen_jax.data import cache, datasets, rows, tokenizers
from gen_jax.data.tokens import source
from tests.data.tokens import made

TOKENIZER = tokenizers.plain_bytes()
LENGTH = 4


def corpus(home, sizes, first=0):
  """A store of one shard a document; tokens count up."""
  found = made.documents(sizes, first)
  return str(made.of_shards(home, {"train": [[one] for one in found]}))


def feed(given, batch_size=4, made_of=rows.windows, length=LENGTH, seed=0):
  how = {"length": length, "batch_size": batch_size, "seed": seed, "rows": made_of}
  return given.feed("train", TOKENIZER, **how)


def alone(path):
  return source.Tokens(path, validation_fraction=0.0)


def targets(batch):
  return batch["targets"][batch["weights"] > 0].tolist()


@pytest.fixture
def path(tmp_path):
  """65 tokens 0..64: 16 rows of 4 and their targets."""
  return corpus(tmp_path / "store", [20, 1, 30, 14])


def test_each_epoch_has_each_token_once_whatever_the_processes(path):
  """1, 2 and 4 processes in turn, killed and started again: three epochs."""
  made_by = itertools.cycle([1, 2, 4])
  seen, epoch = [], 16 // 4
  for step in range(3 * epoch):
    num = next(made_by)
    given = feed(alone(path))  # a new process has nothing but the step
    for host in range(num):
      part = slice(host * 4 // num, (host + 1) * 4 // num)
      seen += targets(given.batch(step, part))
    if (step + 1) % epoch == 0:
      assert sorted(seen) == list(range(1, 65))
      seen = []


def test_epochs_and_seeds_have_orders_of_their_own(path):
  def order(seed, epoch):
    steps = range(4 * epoch, 4 * epoch + 4)
    return tuple(
      i for step in steps for i in feed(alone(path), seed=seed).indices(step)
    )

  orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
  assert all(sorted(found) == list(range(16)) for found in orders)
  assert len(set(orders)) == 4


@pytest.mark.parametrize("start", [0, 5])
def test_stream_is_the_batches_from_any_step_on(path, start):
  given = feed(alone(path))
  part = slice(2, 4)
  for i, batch in enumerate(itertools.islice(given.stream(start, part), 6)):
    want = given.batch(start + i, part)
    assert all(np.array_equal(batch[name], want[name]) for name in want)
    whole = given.batch(start + i)
    assert all(np.array_equal(batch[name], whole[name][2:]) for name in want)


def test_indices_name_the_rows(path):
  given = feed(alone(path))
  for step in (0, 3, 9):
    first = given.batch(step)["inputs"][:, 0]
    assert [4 * i for i in given.indices(step)] == first.tolist()


def test_one_ordered_pass_pads_with_zero_weights(tmp_path):
  given = feed(alone(corpus(tmp_path / "s", [13, 10])))  # 22 targets: 5.5 rows
  batches = list(given.once())
  assert targets(batches[0]) == list(range(1, 17))
  assert [len(batch["inputs"]) for batch in batches] == [4, 4]
  assert [t for batch in batches for t in targets(batch)] == list(range(1, 23))
  halves = [list(given.once(slice(2 * h, 2 * h + 2))) for h in (0, 1)]
  for batch, *parts in zip(batches, *halves, strict=True):
    joined = np.concatenate([part["weights"] for part in parts])
    np.testing.assert_array_equal(joined, batch["weights"])
  assert len(list(given.once(max_batches=1))) == 1


@pytest.mark.parametrize("shared", [False, True])
def test_packed_rows_are_those_of_the_whole_stream(path, shared):
  """A window of a store gives what one of all tokens in memory does."""
  made_of = functools.partial(rows.packed, shared_marks=shared)
  given = feed(alone(path), made_of=made_of, length=9)
  stream = cache.Tokens(np.arange(65), np.array([0, 20, 21, 51]))
  for number, batch in enumerate(given.once()):
    for row in range(4):
      start = 9 * (4 * number + row)
      if start < 64:
        want = made_of([stream.part(start, start + 10)], 9, None)
        assert all(np.array_equal(batch[name][row], want[name][0]) for name in want)


def test_data_sets_read_stores_like_other_sources(path):
  for kind, names in (
    (datasets.TextData, {"inputs", "targets", "weights"}),
    (datasets.PackedText, {"inputs", "targets", "weights", "segments", "positions"}),
    (datasets.Infill, {"inputs", "targets", "weights", "segments", "positions"}),
  ):
    data = kind(alone(path), tokenizers.plain_bytes, length=8, batch_size=2)
    batch = data.pipeline("train", TOKENIZER, seed=0).batch(0)
    abstract = data.abstract_batch()
    assert batch.keys() == abstract.keys() == names
    for name, array in batch.items():
      assert (array.shape, array.dtype) == (abstract[name].shape, abstract[name].dtype)


@pytest.fixture
def two(tmp_path):
  """Stores of 12 and of 5 rows, whose tokens are below and from 100."""
  return (corpus(tmp_path / "a", [30, 19]), corpus(tmp_path / "b", [21], first=100))


def test_mixtures_take_every_row_of_each_store_in_every_epoch_of_it(two):
  """Weights change while it runs; restarts and processes change nothing."""
  mixture = source.Mixture(
    two, (3.0, 1.0), changes=((20, 1.0, 1.0), (30, 0.0, 1.0)), validation_fraction=0.0
  )
  stores = collections.defaultdict(list)
  for step in range(40):
    for row in range(4):
      found = targets(feed(mixture).batch(step, slice(row, row + 1)))
      stores[found[0] >= 100].append(found)
  num = {False: 60 + 20, True: 20 + 20 + 40}
  for name, size in ((False, 12), (True, 5)):
    assert len(stores[name]) == num[name]
    for epoch in range(num[name] // size):
      part = stores[name][epoch * size : (epoch + 1) * size]
      seen = itertools.chain.from_iterable(part)
      low = 100 * name
      assert sorted(seen) == list(range(low + 1, low + 1 + 4 * size))


def test_mixtures_validate_on_all_stores_in_order(two):
  mixture = source.Mixture(two, (0.0, 1.0), validation_fraction=0.25)
  how = {"length": 4, "batch_size": 2, "seed": 0, "rows": rows.windows}
  batches = mixture.feed("validation", TOKENIZER, **how).once()
  found = [t for batch in batches for t in targets(batch)]
  assert found == [*range(38, 49), *range(117, 121)]


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"weights": (1.0, -1.0)}, "at least 0"),
    ({"weights": (0.0, 0.0)}, "one must be above 0"),
    ({"weights": (1.0,)}, "2 paths and 1 weights"),
    ({"changes": ((5, 1.0),)}, "2 paths and 1 weights"),
    ({"changes": ((5, 0.0, 0.0),)}, "one must be above 0"),
    ({"changes": ((5, 1.0, 1.0), (5, 1.0, 2.0))}, "above 0 that rise"),
    ({"changes": ((0, 1.0, 1.0),)}, "above 0 that rise"),
    ({"changes": ((1.5, 1.0, 1.0),)}, "above 0 that rise"),
  ],
)
def test_mixtures_that_cannot_be(two, changes, says):
  with pytest.raises(types.InputError, match=says):
    source.Mixture(**{"paths": two, "weights": (1.0, 1.0), **changes})


def test_a_corpus_shorter_than_a_row(path):
  with pytest.raises(types.InputError, match=r"'train' of .* has 65 tokens, fewer"):
    feed(alone(path), length=65)
  feed(alone(path), length=64).batch(0)


def test_ids_beyond_the_vocabulary_are_of_another_tokenizer(tmp_path):
  np.arange(300, dtype=np.uint16).tofile(tmp_path / "train.bin")
  given = feed(alone(str(tmp_path)), length=299, batch_size=1)
  with pytest.raises(types.InputError, match="hold 299, the tokenizer has 257"):
    given.batch(0)


def test_texts_need_the_stores_own_tokenizer(tmp_path, path):
  assert alone(path).documents("train")[0] == bytes(range(20)).decode()
  np.arange(20, dtype=np.uint16).tofile(tmp_path / "train.bin")
  texts = alone(str(tmp_path)).documents("train")  # not read yet
  with pytest.raises(types.InputError, match="no tokenizer"):
    len(texts)
