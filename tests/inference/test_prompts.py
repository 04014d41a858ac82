"""Prompts from strings: which class a text names."""

import numpy as np
import pytest

from gen_jax.data.digits import source
from gen_jax.inference import prompts
from gen_jax.types import InputError

NAMES = ("zero", "one", "fire truck", "truck", "7")


@pytest.mark.parametrize(
  "text, number",
  [
    ("zero", 0),
    (" One ", 1),
    ("2", 2),
    ("7", 4),  # a name comes before a number
    ("the digit one", 1),
    ("a red fire truck", 2),  # not also 'truck'
    ("trucks and one", 1),  # whole words
    ("", 5),
  ],
)
def test_a_text_names_a_class(text, number):
  assert prompts.label(text, NAMES) == number


@pytest.mark.parametrize(
  "text, says",
  [
    ("trukc", "names no class; the nearest is 'truck'; there are 5, 0 is 'zero'"),
    ("5", "names no class"),
    ("-1", "names no class"),
    ("zero or one", "names more than one class"),
  ],
)
def test_another_text_is_refused_by_one_line(text, says):
  with pytest.raises(InputError, match=says) as error:
    prompts.labels(NAMES)([text])
  assert "\n" not in str(error.value)


def test_captions_of_digits_name_their_classes():
  names = source.Digits().class_names()
  examples = source.Digits().examples("validation")
  some = [examples[i] for i in range(40)]
  found = prompts.labels(names)([e["caption"] for e in some])
  np.testing.assert_array_equal(found, [e["label"] for e in some])
