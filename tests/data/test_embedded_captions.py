"""Captions of the embedded sets are data: they stay when prose around them changes.

The hashes are tripwires, taken from the sets with which the published results were
measured: other captions need a new version of a builder, and new measurements.
"""

import hashlib

from gen_jax.data import chat
from gen_jax.data.digits import digits_dataset_builder as digits
from gen_jax.data.shapes import source


def digest(texts):
  return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def captions(examples, num=200):
  return digest([examples[i]["caption"] for i in range(num)])


def test_digits():
  assert str(digits.Builder.VERSION) == "1.0.1"
  assert digest((*digits.PHRASES, *digits.NAMES)) == "6d5252166299dfc3"


def test_shapes():
  shapes = source.Shapes()
  assert captions(shapes.examples("train")) == "3cd6ea8945f8dce4"
  assert captions(shapes.edits("train")) == "885b52b96b8649fc"


def test_chat_templates():
  assert digest((chat.ALPACA, chat.PLAIN)) == "6859b7acc8d49624"
