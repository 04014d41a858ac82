"""Byte-level tokenizers: any text comes back, and bytes are counted exactly."""

import hypothesis
import numpy as np
import pytest
import tokenizers as backends
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
BYTES = tokenizers.train_bpe([], 257)

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
  assert "".join(tokenizer.stream(iter(ids))) == text
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
  expected = tokenizer.backend.decode(ids, skip_special_tokens=True)
  assert tokenizer.decode(ids) == "".join(tokenizer.stream(ids)) == expected
  assert tokenizer.decode(np.array(ids, np.int32)) == expected


def test_stream_gives_characters_as_soon_as_they_are_whole():
  pieces = list(BYTES.stream(BYTES.encode("aé🙂")))
  assert pieces == ["a", "é", "🙂"]
  cut = BYTES.encode("a🙂")[:-1]
  assert list(BYTES.stream(cut)) == ["a", "\ufffd"]


@both
def test_special_token_in_a_document_is_plain_text(tokenizer, tmp_path):
  tokenizer.save(tmp_path / "tokenizer.json")
  for t in (tokenizer, tokenizers.load(tmp_path / "tokenizer.json")):
    ids = t.encode(f"a{END}b")
    assert t.eot not in ids and len(ids) > 3
    assert t.eot not in t.encode_batch([f"a{END}b"])[0]
    assert t.decode(ids) == f"a{END}b"
    assert t.decode([*t.encode("a"), t.eot, *t.encode("b")]) == "ab"
    assert t.token_bytes(400)[t.eot] == 0


def test_vocabulary():
  assert BYTES.vocab_size == 257
  assert 257 < SMALL.vocab_size <= 320
  sizes = SMALL.token_bytes(400)
  assert sizes.shape == (400,) and sizes.dtype == np.int32
  assert (sizes[: SMALL.vocab_size] == 0).sum() == 1  # END_OF_TEXT
  assert not sizes[SMALL.vocab_size :].any()
  again = tokenizers.train_bpe(TEXTS, 320)
  assert again.backend.to_str() == SMALL.backend.to_str()


def test_too_small_a_vocabulary():
  with pytest.raises(types.InputError, match=r"vocab_size=256 must be at least 257"):
    tokenizers.train_bpe(TEXTS, 256)


def test_text_that_is_not_unicode():
  with pytest.raises(types.InputError, match=r"'\\ud800' is not valid Unicode"):
    SMALL.encode("\ud800")


def _byte_level(**parts) -> backends.Tokenizer:
  backend = backends.Tokenizer(backends.models.BPE())
  backend.pre_tokenizer = backends.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = backends.decoders.ByteLevel()
  for name, part in parts.items():
    setattr(backend, name, part)
  alphabet = backends.pre_tokenizers.ByteLevel.alphabet()
  trainer = backends.trainers.BpeTrainer(
    initial_alphabet=alphabet, show_progress=False, vocab_size=256
  )
  backend.train_from_iterator([], trainer)
  return backend


def test_a_tokenizer_from_elsewhere(tmp_path):
  """Other special tokens are no text; added words are, in UTF-8 bytes."""
  backend = _byte_level()
  backend.add_special_tokens([END, "<pad>"])
  backend.add_tokens(["größe"])
  path = tmp_path / "theirs.json"
  backend.save(str(path))
  tokenizer = tokenizers.from_file([], str(path))
  assert tokenizer.vocab_size == 259
  text = "die größe <pad> zählt"
  ids = tokenizer.encode(text)
  assert backend.token_to_id("größe") in ids
  assert tokenizer.decode(ids) == text
  assert tokenizer.token_bytes(300)[ids].sum() == len(text.encode())
  assert tokenizer.token_bytes(300)[backend.token_to_id("<pad>")] == 0


def test_a_tokenizer_that_would_lose_text(tmp_path):
  path = tmp_path / "theirs.json"
  backend = _byte_level()
  backend.save(str(path))
  with pytest.raises(types.InputError, match=rf"{path} has no token <\|endoftext\|>"):
    tokenizers.load(path)
  backend = _byte_level(normalizer=backends.normalizers.NFC())
  backend.add_special_tokens([END])
  backend.save(str(path))
  with pytest.raises(types.InputError, match=rf"{path} does not give back"):
    tokenizers.load(path)
  backend = backends.Tokenizer(backends.models.WordLevel({"日本": 0, END: 1}, END))
  backend.save(str(path))
  with pytest.raises(types.InputError, match=r"'日本' is not byte-level"):
    tokenizers.load(path)
  path.write_text("{}")
  with pytest.raises(types.InputError, match=rf"cannot read tokenizer {path}"):
    tokenizers.load(path)
