"""A batch is a pure function of (seed, step); hosts and restarts change nothing."""

import dataclasses
import itertools

import numpy as np
import pytest

from gen_jax import types
from gen_jax.data import cache, pipeline, rows, tokenizers


def transform(example, generator):
  return {
    "id": np.int32(example),
    "noise": np.float32(generator.random()),
    "weights": np.ones((), np.float32),
  }


def make(num=20, batch_size=4, seed=0):
  return pipeline.Pipeline(range(num), transform, batch_size, seed)


def test_batch_is_a_function_of_seed_and_step():
  a, b = make().batch(7), make().batch(7)
  assert all(np.array_equal(a[k], b[k]) for k in a)
  other = make(seed=1).batch(7)
  assert not np.array_equal(a["id"], other["id"])
  assert not np.array_equal(a["noise"], make().batch(8)["noise"])


@pytest.mark.parametrize("start", [0, 6])
def test_stream_is_the_batches_from_any_step_on(start):
  for i, batch in enumerate(itertools.islice(make().stream(start), 8)):
    expected = make().batch(start + i)
    assert all(np.array_equal(batch[k], expected[k]) for k in batch)


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_hosts_together_see_the_global_batch(num_hosts):
  size = 8 // num_hosts
  for step in (0, 5):
    parts = [
      make(batch_size=8).batch(step, slice(h * size, (h + 1) * size))["id"]
      for h in range(num_hosts)
    ]
    np.testing.assert_array_equal(
      np.concatenate(parts), make(batch_size=8).batch(step)["id"]
    )


def test_every_epoch_has_each_example_once_in_another_order():
  epochs = [
    np.concatenate([make().batch(5 * epoch + i)["id"] for i in range(5)])
    for epoch in range(3)
  ]
  for ids in epochs:
    assert sorted(ids) == list(range(20))
  assert not np.array_equal(epochs[0], epochs[1])
  assert not np.array_equal(epochs[1], epochs[2])


def test_one_pass_pads_with_zero_weights():
  batches = list(make(num=10).once())
  ids = np.concatenate([b["id"][b["weights"] > 0] for b in batches])
  np.testing.assert_array_equal(ids, np.arange(10))
  assert [len(b["id"]) for b in batches] == [4, 4, 4]
  halves = [list(make(num=10).once(slice(2 * h, 2 * h + 2))) for h in (0, 1)]
  for i, batch in enumerate(batches):
    both = np.concatenate([h[i]["weights"] for h in halves])
    np.testing.assert_array_equal(both, batch["weights"])


def stream(*documents):
  """The documents' numbers as a stream."""
  sizes = [len(document) for document in documents]
  starts = np.cumsum([0, *sizes[:-1]])
  return cache.Tokens(np.concatenate(documents).astype(np.uint16), starts)


def windows(tokens, length, train=False, **options):
  return pipeline.text(
    tokens, length=length, batch_size=1, seed=0, train=train, **options
  )


def test_windows_make_every_token_but_the_first_a_target_once():
  tokens = stream(np.arange(100, 123))
  features = list(windows(tokens, 5).once())
  assert len(features) == 5 and features[0]["inputs"].dtype == np.int32
  targets = np.concatenate([f["targets"][f["weights"] > 0] for f in features])
  inputs = np.concatenate([f["inputs"][f["weights"] > 0] for f in features])
  np.testing.assert_array_equal(targets, tokens.ids[1:])
  np.testing.assert_array_equal(inputs, tokens.ids[:-1])


def test_crops_stay_inside_and_reach_everywhere():
  made = windows(stream(np.arange(40)), 8, train=True)
  starts = set()
  for step in range(300):
    features = made.batch(step)
    kept = features["weights"] > 0
    np.testing.assert_array_equal(
      features["targets"][kept], features["inputs"][kept] + 1
    )
    starts.add(int(features["inputs"][0, 0]))
  assert starts == set(range(33))


@pytest.mark.parametrize("shared", [False, True])
def test_packed_windows_know_their_documents(shared):
  """Token by token, from the definition."""
  sizes, length = (5, 1, 12, 3, 2, 9), 7
  documents = [np.arange(size) + 100 * i for i, size in enumerate(sizes)]
  tokens = stream(*documents)
  owner = np.concatenate([[i] * size for i, size in enumerate(sizes)])
  place = np.concatenate([np.arange(size) for size in sizes])
  for start in range(len(owner) - 1):
    window = tokens.part(start, start + length + 1)
    made = rows.packed([window], length, None, shared_marks=shared)
    made = {name: array[0] for name, array in made.items()}
    for t in range(length):
      i = start + t
      if i >= len(owner):
        assert not any(made[key][t] for key in ("weights", "segments", "positions"))
        continue
      assert made["inputs"][t] == tokens.ids[i]
      assert made["segments"][t] == owner[i] - owner[start] + 1
      first = owner[i] == owner[start]
      assert made["positions"][t] == (t if first else place[i])
      if i + 1 < len(owner):
        assert made["targets"][t] == tokens.ids[i + 1]
        assert made["weights"][t] == (owner[i] == owner[i + 1] or shared)
      else:
        assert made["weights"][t] == 0


def test_documents_open_and_end():
  shared = tokenizers.train_bpe(["ab", "c"], 257)
  made = cache.tokenize(["ab", "", "c"], shared)
  assert made.ids.dtype == np.uint16 and shared.decode(made.ids) == "abc"
  assert np.flatnonzero(made.ids == shared.eos).tolist() == [0, 3, 4]
  assert made.starts.tolist() == [0, 3, 4]
  own = dataclasses.replace(shared, bos=300, eos=301, opening=(300,))
  a, b, c = shared.encode("abc")
  made = cache.tokenize(["ab", "c"], own)
  assert made.ids.tolist() == [300, a, b, 301, 300, c, 301]
  own = dataclasses.replace(own, opening=())  # bos is not put where it is not asked for
  assert cache.tokenize(["ab", "c"], own).ids.tolist() == [a, b, 301, c, 301]
  made = cache.tokenize(["ab", "", "c"], tokenizers.characters(["abc"]))
  assert (made.ids.tolist(), made.starts.tolist()) == ([0, 1, 2], [0, 2])


def test_short_text_is_refused():
  with pytest.raises(types.InputError, match="fewer than one window"):
    windows(stream(np.arange(8)), 8)


def test_caption_is_cut_and_closed():
  tokenizer = tokenizers.train_bpe(["ab"], 257)
  tokens, mask = pipeline.pad_caption("a", tokenizer, 4)
  assert tokens.tolist() == [*tokenizer.encode("a"), *[tokenizer.eos] * 3]
  assert mask.tolist() == [True, True, False, False]
  tokens, mask = pipeline.pad_caption("abcdef", tokenizer, 4)
  assert tokens.tolist() == [*tokenizer.encode("abc"), tokenizer.eos]
  assert mask.all()


def test_images_are_cropped_in_the_middle_and_scaled():
  image = np.zeros((4, 8, 3), np.uint8)
  image[:, 2:6] = 255
  tokenizer = tokenizers.train_bpe(["ab"], 257)
  source = [{"image": image, "caption": "a"}]
  prompts = pipeline.Prompts(("caption",), tokenizer, 3)
  made = pipeline.images(
    source, prompts, image_size=2, channels=1, batch_size=1, seed=0
  ).batch(0)
  assert made["image"].shape == (1, 2, 2, 1)
  np.testing.assert_array_equal(made["image"], 1.0)


@pytest.mark.parametrize("num, size", [(7, 4), (64, 8), (3, 8)])
def test_the_examples_of_a_step_are_known_without_reading_them(num, size):
  made = pipeline.Pipeline(
    [f"{i}" for i in range(num)], lambda text, _: {"x": np.int32(text)}, size, seed=5
  )
  for step in (0, 1, 9, 1000):
    assert made.indices(step) == made.batch(step)["x"].tolist()
