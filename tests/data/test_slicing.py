"""Slices have the tokens of the whole, and memory does not grow with the text."""

import base64
import dataclasses
import json
import pathlib
import random
import subprocess
import sys
from unittest import mock

import hypothesis
import pytest
import tokenizers as huggingface
from hypothesis import strategies

from gen_jax.data import (
  cache,
  encodings,
  ranks,
  slicing,
  tokenizer,
  tokenizer_json,
  tokenizers,
)

CODE = "".join(p.read_text() for p in sorted(pathlib.Path("gen_jax").glob("*.py")))
ODD = (
  "a\u2028b \x85 \x1c\u3000x 日本 \xa0 é\r\n\t \n\n  f ( ) :\x0c 1234567 's ..!\n/\n"
)
BPE = tokenizers.train_bpe([CODE, ODD], 600)


def _ranks(layout):
  pieces = filter(None, BPE.encoding.pieces)
  lines = (b"%s %d" % (base64.b64encode(p), i) for i, p in enumerate(pieces))
  return ranks.read(b"\n".join(lines), layout)


def _llama(*first):
  """BPE over the whole text, spaces as U+2581: nothing splits it into words.

  Args:
    first: what its normaliser does before that.
  """
  text = CODE.replace(" ", "\u2581")
  backend = huggingface.Tokenizer(huggingface.models.BPE(byte_fallback=True))
  backend.normalizer = huggingface.normalizers.Replace(" ", "\u2581")
  backend.pre_tokenizer = huggingface.pre_tokenizers.Metaspace(prepend_scheme="never")
  names = [f"<0x{byte:02X}>" for byte in range(256)]
  trainer = huggingface.trainers.BpeTrainer(
    vocab_size=800, special_tokens=names, show_progress=False
  )
  backend.train_from_iterator([text], trainer)
  config = json.loads(backend.to_str())
  config.update(pre_tokenizer=None, added_tokens=[])
  parts = [*first, config["normalizer"]]
  config["normalizer"] = {"type": "Sequence", "normalizers": parts}
  kinds = ("ByteFallback", "Fuse")
  config["decoder"] = {"type": "Sequence", "decoders": [{"type": k} for k in kinds]}
  return tokenizer_json.read(json.dumps(config).encode())


ENCODINGS = {
  "bpe": BPE.encoding,
  "bytes": encodings.plain_bytes(),
  # p50k has the words of r50k, and a gap in its ranks.
  **{name: _ranks(name) for name in ranks.LAYOUTS if not name.startswith("p50k")},
  "llama": _llama(),
  "a space first": _llama({"type": "Prepend", "prepend": "\u2581"}),
  "NFC": _llama({"type": "NFC"}),
}


def _ids(encoding, text):
  parts = [part.text for part in slicing.slices(text, encoding)]
  assert "".join(parts) == text
  first, *others = parts
  found = (encoding.encode(first), *map(encoding.encode_rest, others))
  return [i for ids in found for i in ids], len(parts)


@pytest.mark.parametrize("name", ENCODINGS)
@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
  seed=strategies.integers(0, 2**32), mixed=strategies.text(max_size=40)
)
def test_slices_have_the_tokens_of_the_whole(name, seed, mixed):
  """Code, odd spaces and any characters, cut every 40 of them."""
  encoding, random_ = ENCODINGS[name], random.Random(seed)
  at = random_.randrange(len(CODE) - 900)
  bits = [ODD, mixed, *CODE[at : at + 900].split(" ")]
  gaps = ["", " ", "\n", "  ", "\r\n"]
  text = "".join(random_.choice(bits) + random_.choice(gaps) for _ in range(150))
  with mock.patch.object(slicing, "_SIZE", 40):
    ids, num = _ids(encoding, text)
    assert slicing.encode(text, tokenizer.Tokenizer(encoding)).tolist() == ids
  assert ids == list(encoding.encode(text))
  assert num > len(text) / 400 or len(set(text)) < 9


def test_what_cannot_be_cut_stays_whole():
  """Without spaces; with a piece that reaches over one; where words are whole texts."""
  over = tokenizers.characters("ab ").encoding
  assert len(list(slicing.slices("ab" * 10**5, over))) == 1
  assert len(list(slicing.slices("ab " * 10**5, over))) > 2
  config = json.loads(BPE.encoding.source)
  size = max(config["model"]["vocab"].values()) + 2
  config["model"]["vocab"]["e\u0120"] = size
  reaching = tokenizer_json.read(json.dumps(config).encode())
  assert not any(" " in p.text[:1] for p in slicing.slices(CODE * 9, reaching))
  unigram = huggingface.Tokenizer(huggingface.models.Unigram([("a", 0.0), (" ", 0.0)]))
  whole = dataclasses.replace(BPE.encoding, backend=unigram, rest=unigram)
  assert len(list(slicing.slices("a " * 10**5, whole))) == 1


def test_a_place_where_the_tokens_would_change_is_not_taken():
  """An added token that takes the spaces after it says so nowhere but in its tokens."""
  backend = huggingface.Tokenizer.from_str(BPE.encoding.source.decode())
  backend.add_tokens([huggingface.AddedToken("@@", rstrip=True, special=False)])
  encoding = tokenizer_json.read(backend.to_str().encode())
  text = "word @@  other " * 20
  with mock.patch.object(slicing, "_SIZE", 40):
    ids, num = _ids(encoding, text)
  assert ids == encoding.encode(text) and num > 2


_PEAK = """
import pathlib, resource, sys
from gen_jax.data import cache, sources, tokenizers
tokenizer = tokenizers.load(pathlib.Path(sys.argv[1]))
source = sources.TextFiles(sys.argv[2], 0.0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stream = cache.tokens(source, "train", tokenizer)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(stream.ids), (after - before) * 1024)
"""


def test_memory_does_not_grow_with_the_text(tmp_path, monkeypatch):
  """One file of 6 MiB: the text in memory and its bytes, and at most 40 MiB."""
  monkeypatch.setenv("GEN_JAX_CACHE", str(tmp_path / "cache"))
  BPE.save(tmp_path / "tokenizer")
  text = (CODE * (6 * 2**20 // len(CODE) + 1))[: 6 * 2**20]
  (tmp_path / "a.txt").write_text(text)
  words = [str(tmp_path / "tokenizer"), str(tmp_path / "a.txt")]
  done = subprocess.run(
    [sys.executable, "-c", _PEAK, *words], capture_output=True, text=True, check=True
  )
  num, extra = map(int, done.stdout.split())
  assert num == len(cache.tokenize([text], BPE).ids)
  assert extra < 3 * len(text) + 40 * 2**20
