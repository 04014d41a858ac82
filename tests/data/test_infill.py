"""Fill in the middle: nothing is lost, the middle comes last."""

import functools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from gen_jax import types
from gen_jax.data import cache, datasets, embedded, infill, rows, tokenizers

MARKS = ("<pre>", "<suf>", "<mid>")
TOKENIZER = tokenizers.train_bpe(["some text to join"], 265, MARKS)
PRE, SUF, MID = (TOKENIZER.specials[mark] for mark in MARKS)


def parts(ids):
  """prefix, suffix, middle of a rearranged piece, and whether it ends."""
  ids = list(ids)
  assert ids[:2] == [TOKENIZER.bos, PRE]
  suffix, middle = ids.index(SUF), ids.index(MID)
  texts = ids[2:suffix], ids[suffix + 1 : middle], ids[middle + 1 :]
  return [TOKENIZER.decode(part) for part in texts]


@hypothesis.given(
  strategies.text(max_size=40), strategies.integers(0, 60), strategies.integers(0, 9)
)
def test_the_parts_make_the_text(text, room, seed):
  how = infill.Infill(1.0, MARKS)
  ids = how.rearranged(text, room, TOKENIZER, np.random.default_rng(seed))
  if ids is None:
    return
  prefix, suffix, middle = parts(ids)
  assert len(ids) <= room and ids[-1] == TOKENIZER.eos
  whole = prefix + middle + suffix.rstrip("\ufffd")
  assert text.startswith(whole)
  if len(ids) < room:
    assert whole == text


def test_cuts_fall_everywhere():
  how, generator = infill.Infill(1.0, MARKS), np.random.default_rng(0)
  found = [parts(how.rearranged("abc", 99, TOKENIZER, generator)) for _ in range(200)]
  assert len(set(map(tuple, found))) == 10  # 0 <= i <= j <= 3


def test_without_it_the_rows_are_packed_windows():
  documents = ["alpha", "be", "gamma delta", "e", "zeta eta theta"]
  stream = cache.tokenize(documents, TOKENIZER)
  row = functools.partial(infill.Infill(0.0, MARKS).row, tokenizer=TOKENIZER)
  for start in range(len(stream.ids) - 1):
    window = stream.part(start, start + 10)
    a = row(window, 9, np.random.default_rng(0))
    b = rows.packed([window], 9, None, shared_marks=True)
    b = {name: array[0] for name, array in b.items()}
    counted = b["weights"] > 0
    np.testing.assert_array_equal(a["weights"], b["weights"])
    for name in ("inputs", "targets", "positions", "segments"):
      np.testing.assert_array_equal(a[name][counted], b[name][counted], name)


def test_half_of_the_pieces_are_rearranged_anew_in_every_epoch(monkeypatch, tmp_path):
  monkeypatch.setenv("GEN_JAX_CACHE", str(tmp_path))
  data = datasets.Infill(embedded.Pydoc(), None, 128, 50, rate=0.5, marks=MARKS)
  made = data.pipeline("validation", TOKENIZER, 0)
  a, b = made.batch(0), made.batch(len(made.examples) // 50 + 1)
  for batch in (a, b):
    share = np.mean((batch["inputs"] == PRE).any(1))
    assert 0.3 < share < 0.75  # some rows hold more than one document
    assert (batch["segments"][:, 0] == 1).all()
  rows = {row.tobytes() for row in a["inputs"]} & {r.tobytes() for r in b["inputs"]}
  assert len(rows) < 50
  np.testing.assert_array_equal(made.batch(3)["inputs"], made.batch(3)["inputs"])


def test_questions_hide_one_line():
  data = datasets.Infill(embedded.Stdlib(), None, 128, 4, marks=MARKS)
  documents = data.source.documents("validation")
  asked = data.questions("validation", TOKENIZER, 8, 120)
  assert len(asked) == 8
  for question in asked:
    prefix, suffix, middle = parts(question.prompt)
    assert middle == "" and len(question.prompt) <= 120
    whole = prefix.lstrip("\ufffd") + question.answer + suffix.rstrip("\ufffd")
    assert any(whole in document for document in documents)
  assert data.questions("validation", TOKENIZER, 8, 3) == []


def test_a_rate_is_a_share():
  with pytest.raises(types.InputError, match=r"rate=1.5 must be in \[0, 1\]"):
    datasets.Infill(embedded.Stdlib(), None, 128, 4, rate=1.5)


def test_a_hole_in_a_prompt():
  how = infill.Infill(0.5, MARKS)
  assert parts(how.around("one <FILL>three", TOKENIZER)) == ["one ", "three", ""]
  for text in ("none", "<FILL> and <FILL>"):
    with pytest.raises(types.InputError, match="must mark the gap once"):
      how.around(text, TOKENIZER)
