"""Repeats: a letter after the first word is the one a word before; rows are pure."""

import itertools

import numpy as np
import pytest

from gen_jax.data import datasets, repeats, tokenizers
from gen_jax.types import InputError

SOURCE = repeats.Repeats(
  num=200, num_validation=40, length=41, num_letters=20, shortest=5, longest=9
)
TOKENIZER = tokenizers.characters([repeats.LETTERS[:20]])
DATA = datasets.TextData(SOURCE, TOKENIZER, length=40, batch_size=8)


def period(document):
  """The least distance at which a document equals itself."""
  return next(n for n in itertools.count(1) if document[n:] == document[:-n])


def test_documents_repeat_words_of_all_lengths():
  documents = list(SOURCE.documents("train"))
  found = [period(document) for document in documents]
  assert all(len(document) == 41 for document in documents)
  assert set(found) == set(range(5, 10))
  counts = np.bincount(found)[5:]
  assert counts.min() > 200 / 5 / 2  # all about equally often
  assert set("".join(documents)) == set(repeats.LETTERS[:20])


def test_splits_share_nothing_and_a_seed_is_a_data_set():
  train, validation = (set(SOURCE.documents(s)) for s in ("train", "validation"))
  assert len(train) > 190 and len(validation) == 40 and not train & validation
  other = repeats.Repeats(num=200, length=41, num_letters=20, shortest=5, longest=9)
  assert list(other.documents("train")) == list(SOURCE.documents("train"))
  other = repeats.Repeats(num=200, length=41, num_letters=20, seed=1)
  assert not set(other.documents("train")) & train


def test_a_row_is_a_document_and_a_batch_a_function_of_seed_and_step():
  pipeline = DATA.pipeline("train", TOKENIZER, seed=3)
  batch = pipeline.batch(5)
  for row, index in enumerate(pipeline.indices(5)):
    text = SOURCE.documents("train")[index]
    assert TOKENIZER.decode(batch["inputs"][row]) == text[:-1]
    assert TOKENIZER.decode(batch["targets"][row]) == text[1:]
  assert batch["weights"].shape == (8, 40) and np.all(batch["weights"] == 1.0)
  half = pipeline.batch(5, slice(4, 8))
  np.testing.assert_array_equal(half["inputs"], batch["inputs"][4:])
  streamed = next(DATA.pipeline("train", TOKENIZER, seed=3).stream(5))
  np.testing.assert_array_equal(streamed["targets"], batch["targets"])
  other = DATA.pipeline("train", TOKENIZER, seed=4).batch(5)
  assert np.any(other["inputs"] != batch["inputs"])
  once = list(DATA.pipeline("validation", TOKENIZER, seed=3).once())
  assert len(once) == 5


def test_a_document_shorter_than_a_row_is_padded():
  data = datasets.TextData(SOURCE, TOKENIZER, length=50, batch_size=2)
  weights = data.pipeline("train", TOKENIZER, seed=0).batch(0)["weights"]
  assert weights.sum(1).tolist() == [40.0, 40.0] and weights[0, 39] == 1.0


def test_words_that_cannot_be():
  with pytest.raises(InputError, match="shortest=9 must be at most longest=5"):
    repeats.Repeats(shortest=9, longest=5)
