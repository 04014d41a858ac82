"""Tokenizers of every format: any text comes back, and bytes are counted exactly."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from gen_jax import types
from gen_jax.data import tokenizers

END = tokenizers.END_OF_TEXT
TEXTS = [
  "the cat sat on the mat",
  "Grüße, 日本語 🙂",
  f"no {END} here",
  "\tx\r\n  y",
] * 5
SMALL = tokenizers.train_bpe(TEXTS, 320)
BYTES = tokenizers.plain_bytes()

unicode_text = strategies.text(
  strategies.one_of(
    strategies.characters(codec="utf-8"),
    strategies.sampled_from("the\u0301 \u200d🙂\ufffd"),
  )
)
both = pytest.mark.parametrize("tokenizer", [SMALL, BYTES], ids=["bpe", "bytes"])
fast = hypothesis.settings(max_examples=150, deadline=None)


@both
@fast
@hypothesis.given(text=unicode_text)
def test_round_trip(tokenizer, text):
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert "".join(tokenizer.decode_pieces(iter(ids))) == text
  assert tokenizer.encode_batch([text, "x"])[0] == ids
  sizes = tokenizer.token_bytes(400)
  assert sizes[ids].sum() == len(text.encode())


@both
@fast
@hypothesis.given(data=strategies.data())
def test_any_ids_decode_as_the_library_has_it(tokenizer, data):
  """A model may draw anything: broken UTF-8, END_OF_TEXT, ids beyond the vocabulary."""
  known = strategies.integers(0, tokenizer.vocab_size + 3)
  ids = data.draw(strategies.lists(known, max_size=12))
  expected = tokenizer.encoding.backend.decode(ids, skip_special_tokens=True)
  assert tokenizer.decode(ids) == "".join(tokenizer.decode_pieces(ids)) == expected
  assert tokenizer.decode(np.array(ids, np.int32)) == expected


def test_stream_gives_characters_as_soon_as_they_are_whole():
  pieces = list(BYTES.decode_pieces(BYTES.encode("aé🙂")))
  assert pieces == ["a", "é", "🙂"]
  cut = BYTES.encode("a🙂")[:-1]
  assert list(BYTES.decode_pieces(cut)) == ["a", "\ufffd"]


@both
def test_special_token_in_a_document_is_plain_text(tokenizer, tmp_path):
  tokenizer.save(tmp_path)
  for t in (tokenizer, tokenizers.load(tmp_path)):
    ids = t.encode(f"a{END}b")
    assert t.eos not in ids and len(ids) > 3
    assert t.eos not in t.encode_batch([f"a{END}b"])[0]
    assert t.decode(ids) == f"a{END}b"
    assert t.decode([*t.encode("a"), t.eos, *t.encode("b")]) == "ab"
    assert t.token_bytes(400)[t.eos] == 0


def test_vocabulary():
  assert BYTES.encode("a\n") == [97, 10] and BYTES.bos == BYTES.eos == 256
  assert BYTES.vocab_size == 257
  assert 257 < SMALL.vocab_size <= 320
  sizes = SMALL.token_bytes(400)
  assert sizes.shape == (400,) and sizes.dtype == np.int32
  assert (sizes[: SMALL.vocab_size] == 0).sum() == 1  # END_OF_TEXT
  assert not sizes[SMALL.vocab_size :].any()
  again = tokenizers.train_bpe(TEXTS, 320)
  assert again.fingerprint == SMALL.fingerprint != BYTES.fingerprint


def test_too_small_a_vocabulary():
  with pytest.raises(types.InputError, match=r"vocab_size=256 must be at least 257"):
    tokenizers.train_bpe(TEXTS, 256)


def test_text_that_is_not_unicode():
  with pytest.raises(types.InputError, match=r"'\\ud800' is not valid Unicode"):
    SMALL.encode("\ud800")
