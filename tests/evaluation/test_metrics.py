"""Figures of merit: their ends, and values worked out by hand."""

import math

import pytest

from gen_jax.evaluation import metrics


def test_the_right_answers():
  texts = ["the cat sat on the mat", "a dog barked at the moon"]
  found = metrics.answers([f" {text}\n" for text in texts], texts)
  assert found["num"] == 2
  for name in ("exact_match", "rouge1", "rouge2", "rougeL"):
    assert found[name] == 1
  assert found["bleu"] == pytest.approx(100)
  assert found["chrf"] == pytest.approx(100)


def test_by_hand():
  """ "the cat sat down" against five words, three of them in order."""
  found = metrics.answers(["the cat sat down"], ["the cat sat very still"])
  assert found["exact_match"] == 0

  def f(p, r):
    return 2 * p * r / (p + r)

  assert found["rouge1"] == pytest.approx(f(3 / 4, 3 / 5))
  assert found["rouge2"] == pytest.approx(f(2 / 3, 2 / 4))
  assert found["rougeL"] == pytest.approx(f(3 / 4, 3 / 5))
  # n-grams 3/4, 2/3, 1/2 and 0/1 (which counts as a half), brevity exp(1 - 5/4).
  precision = (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** (1 / 4)
  assert found["bleu"] == pytest.approx(100 * math.exp(1 - 5 / 4) * precision)


def test_characters_by_hand():
  """chrF, n = 1 .. 6 and beta 2: here n = 1 and 2 alone have anything."""
  found = metrics.answers(["ab"], ["ac"])
  f = (1 + 4) * 0.5 * 0.5 / (4 * 0.5 + 0.5)  # of single characters; pairs have none
  assert found["chrf"] == pytest.approx(100 * f / 2)


def test_empty_answers():
  found = metrics.answers(["", ""], ["a b", "c d"])
  assert set(found.values()) == {0.0, 2.0}
