"""tiktoken's ranks: the published encodings, by the library's own constants."""

import base64
import json

import pytest
import tiktoken
from tiktoken_ext import openai_public

from gen_jax import types
from gen_jax.data import ranks, tokenizers

BYTES = [bytes([i]) for i in range(256)]
TEXTS = [
  "I'LL say 123456 things,\r\n\r\n  don't you?  ",
  "HTTPServer's naïve Ǆ É\u0301 日本 \U0001f642\n\t\n x",
  "<|endoftext|> a/b//c\n/ ...!!!\n\n",
]


def _file(num: int, holes=()) -> tuple[bytes, dict[bytes, int]]:
  """A file of `num` ranks, whose ids leave `holes` out: bytes, pairs, fillers."""
  pieces = [*BYTES, b" t", b"th", b" th", b"12", b"123", b"\r\n", b"\n\n", b"  "]
  pieces += [b"\xff%06d" % i for i in range(num - len(pieces))]
  ids = (i for i in range(num + len(holes)) if i not in holes)
  table = dict(zip(pieces[:num], ids, strict=True))
  lines = (base64.b64encode(piece) + b" %d" % i for piece, i in table.items())
  return b"\n".join(lines) + b"\n", table


@pytest.mark.parametrize("name", openai_public.ENCODING_CONSTRUCTORS)
def test_published_encodings_are_the_librarys(monkeypatch, name):
  for load in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
    monkeypatch.setattr(openai_public, load, lambda *files, **hashes: {})
  theirs = openai_public.ENCODING_CONSTRUCTORS[name]()
  layout = ranks.LAYOUTS[name]
  assert layout.words == theirs["pat_str"]
  assert dict(layout.specials) == theirs["special_tokens"]
  source, table = _file(layout.num_ranks, (50_256,) * name.startswith("p50k"))
  backend = tiktoken.Encoding(**{**theirs, "mergeable_ranks": table})
  made = ranks.read(source, name)
  assert len(made.pieces) == backend.n_vocab
  for text in TEXTS:
    assert made.encode(text) == backend.encode_ordinary(text)
  if name not in ("gpt2", "p50k_edit", "o200k_harmony"):  # others of as many ranks
    assert ranks.read(source).layout == name


def test_a_file_says_which_encoding_it_is(tmp_path):
  (tmp_path / "cl100k_base.tiktoken").write_bytes(_file(100_256)[0])
  made = tokenizers.load(tmp_path / "cl100k_base.tiktoken")
  assert (made.eos, made.opening, made.vocab_size) == (100_257, (), 100_277)
  assert made.encoding.pieces[100_256] == made.encoding.pieces[100_270] == b""
  made.save(tmp_path / "again")
  again = tokenizers.load(tmp_path / "again")
  assert again.encode(TEXTS[0]) == made.encode(TEXTS[0])
  assert again.specials == made.specials
  llama = tokenizers._made(ranks.read(_file(128_000)[0]))
  assert llama.opening == (llama.bos,) == (128_000,)


@pytest.mark.parametrize("num", [300, 50_257, 151_643])
def test_others_are_refused_until_a_layout_is_named(num):
  with pytest.raises(
    types.InputError, match=rf"its {num} ranks .*o200k_base \(199998\)"
  ):
    ranks.read(_file(num)[0])
  made = ranks.read(_file(num)[0], "llama3")
  assert made.specials["<|begin_of_text|>"] == num


def test_one_huge_rank_is_refused_without_a_table_of_it(tmp_path):
  source = _file(300)[0] + b"YWJjZGVm 300000000\n"
  with pytest.raises(ValueError, match="id 300000000 is far beyond its 301 entries"):
    ranks.read(source, "gpt2")
  (tmp_path / "tokenizer.model").write_bytes(source)
  for layout in ([], 3):
    (tmp_path / "ranks.json").write_text(json.dumps({"layout": layout}))
    with pytest.raises(types.InputError, match=r"ranks.json is not"):
      tokenizers.load(tmp_path)
