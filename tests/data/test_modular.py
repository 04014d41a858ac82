"""Modular: differences are right, the splits share no pair, only results count."""

import numpy as np
import pytest

from gen_jax.data import datasets, modular, tokenizers
from gen_jax.types import InputError

SOURCE = modular.Modular(modulus=7, train_fraction=0.4)
TOKENIZER = tokenizers.characters([modular.LETTERS[:7]])
DATA = datasets.TextData(SOURCE, TOKENIZER, length=2, batch_size=4)


def numbers(document):
  return tuple(modular.LETTERS.index(letter) for letter in document)


def test_all_pairs_are_there_once_with_their_difference():
  train, validation = (
    list(map(numbers, SOURCE.documents(split))) for split in ("train", "validation")
  )
  assert len(train) == 20 and len(validation) == 29
  pairs = {(a, b) for a, b, _ in train + validation}
  assert pairs == {(a, b) for a in range(7) for b in range(7)}
  assert all((b + c) % 7 == a for a, b, c in train + validation)


def test_a_seed_is_a_split():
  again = modular.Modular(modulus=7, train_fraction=0.4)
  other = modular.Modular(modulus=7, train_fraction=0.4, seed=1)
  assert list(again.documents("train")) == list(SOURCE.documents("train"))
  assert set(other.documents("train")) != set(SOURCE.documents("train"))


def test_only_the_result_is_a_target_and_a_batch_is_a_function_of_seed_and_step():
  pipeline = DATA.pipeline("train", TOKENIZER, seed=3)
  batch = pipeline.batch(5)
  for row, index in enumerate(pipeline.indices(5)):
    text = SOURCE.documents("train")[index]
    assert TOKENIZER.decode(batch["inputs"][row]) == text[:2]
    assert TOKENIZER.decode(batch["targets"][row]) == text[1:]
  assert batch["weights"].tolist() == [[0.0, 1.0]] * 4
  longer = datasets.TextData(SOURCE, TOKENIZER, length=5, batch_size=4)
  weights = longer.pipeline("train", TOKENIZER, seed=3).batch(5)["weights"]
  assert weights.tolist() == [[0.0, 1.0, 0.0, 0.0, 0.0]] * 4
  rows = list(DATA.pipeline("validation", TOKENIZER, seed=3).once())
  assert np.sum([batch["weights"] for batch in rows]) == 29


def test_what_cannot_be():
  with pytest.raises(InputError, match=r"train_fraction=0\.001 of 49 pairs"):
    modular.Modular(modulus=7, train_fraction=0.001)
  short = datasets.TextData(SOURCE, TOKENIZER, length=1, batch_size=4)
  with pytest.raises(InputError, match="length=1 must be at least 2"):
    short.pipeline("train", TOKENIZER, seed=0)
