"""Foreign tokenizer files: the same ids as their own libraries, any text comes back."""

import base64
import io
import json
import re

import hypothesis
import pytest
import sentencepiece
import tiktoken
import tokenizers as backends
from hypothesis import strategies

from gen_jax import types
from gen_jax.data import ranks, tokenizers

END = tokenizers.END_OF_TEXT
TEXTS = ["the cat sat on the mat", "hello world, it is 1984", "die Größe zählt"] * 20
HARD = [
  "",
  " ",
  "  x ",
  "\u2581",
  "a\u2581 b",
  "<s> x</s>",
  f"\r\n{END}\t",
  "日本🙂\x00",
]

unicode_text = strategies.text(
  strategies.one_of(
    strategies.characters(codec="utf-8"),
    strategies.sampled_from("the\u0301 \u200d🙂\ufffd\u2581"),
  )
)


def _byte_level(**parts) -> backends.Tokenizer:
  backend = backends.Tokenizer(backends.models.BPE())
  backend.pre_tokenizer = backends.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = backends.decoders.ByteLevel()
  for name, part in parts.items():
    setattr(backend, name, part)
  alphabet = backends.pre_tokenizers.ByteLevel.alphabet()
  trainer = backends.trainers.BpeTrainer(
    initial_alphabet=alphabet, show_progress=False, vocab_size=300
  )
  backend.train_from_iterator(TEXTS, trainer)
  return backend


def _piece_model(**options) -> bytes:
  """A SentencePiece model in the manner of Llama's."""
  model = io.BytesIO()
  options = {
    "model_type": "bpe",
    "vocab_size": 330,
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "minloglevel": 2,
    **options,
  }
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS), model_writer=model, **options
  )
  return model.getvalue()


PIECES = _piece_model()


def _byte_fallback(scheme: str | None = None) -> backends.Tokenizer:
  """The same model as a tokenizer.json: Llama 2's form, or with a scheme."""
  theirs = sentencepiece.SentencePieceProcessor(model_proto=PIECES)
  vocab = {theirs.id_to_piece(i): i for i in range(theirs.get_piece_size())}
  scores = {piece: theirs.get_score(i) for piece, i in vocab.items()}
  merges = [
    (piece[:cut], piece[cut:])
    for piece in sorted(vocab, key=lambda p: -scores[p])
    for cut in range(1, len(piece))
    if not piece.startswith("<") and piece[:cut] in vocab and piece[cut:] in vocab
  ]
  model = backends.models.BPE(
    vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
  )
  backend = backends.Tokenizer(model)
  rule = backends.normalizers
  if scheme is None:
    backend.normalizer = rule.Sequence(
      [rule.Prepend("\u2581"), rule.Replace(" ", "\u2581")]
    )
  else:
    backend.pre_tokenizer = backends.pre_tokenizers.Metaspace(
      prepend_scheme=scheme, split=False
    )
  steps = backends.decoders
  backend.decoder = steps.Sequence(
    [
      steps.Replace("\u2581", " "),
      steps.ByteFallback(),
      steps.Fuse(),
      steps.Strip(" ", 1, 0),
    ]
  )
  backend.add_special_tokens(["<unk>", "<s>", "</s>"])
  return backend


def _ranks_file() -> bytes:
  """The 256 bytes and a few longer pieces."""
  pieces = [bytes([i]) for i in range(256)] + [b"th", b"the", b" the", b" c", b"12"]
  lines = [f"{base64.b64encode(p).decode()} {i}" for i, p in enumerate(pieces)]
  return "\n".join(lines).encode() + b"\n"


def _gpt2_files(folder, names=("encoder.json", "vocab.bpe")):
  backend = _byte_level()
  backend.add_special_tokens([END])
  model = json.loads(backend.to_str())["model"]
  (folder / names[0]).write_text(json.dumps(backend.get_vocab()))
  merges = "\n".join(" ".join(pair) for pair in model["merges"])
  (folder / names[1]).write_text(f"#version: 0.2\n{merges}\n")
  return backend


def _folder(folder, kind: str):
  """A folder in the given format; returns `text -> ids` of the format's own library."""
  folder.mkdir(exist_ok=True)
  if kind == "gpt2":
    backend = _gpt2_files(folder)
  elif kind == "sentencepiece":
    (folder / "tokenizer.model").write_bytes(PIECES)
    return sentencepiece.SentencePieceProcessor(model_proto=PIECES).encode
  elif kind == "tiktoken":
    (folder / "tokenizer.model").write_bytes(_ranks_file())
    (folder / "ranks.json").write_text('{"layout": "gpt2"}')
    table = {
      base64.b64decode(line.split()[0]): int(line.split()[1])
      for line in _ranks_file().splitlines()
    }
    words = ranks.LAYOUTS["gpt2"].words
    return tiktoken.Encoding(
      "x", pat_str=words, mergeable_ranks=table, special_tokens={}
    ).encode_ordinary
  else:
    schemes = {"llama": None, "always": "always", "first": "first"}
    backend = _byte_level() if kind == "byte_level" else _byte_fallback(schemes[kind])
    if kind == "byte_level":
      backend.add_special_tokens([END])
    backend.save(str(folder / "tokenizer.json"))
  backend.encode_special_tokens = True
  return lambda text: backend.encode(text, add_special_tokens=False).ids


KINDS = ("gpt2", "byte_level", "llama", "always", "first", "sentencepiece", "tiktoken")


@pytest.fixture(scope="module", params=KINDS)
def loaded(request, tmp_path_factory):
  """A tokenizer read from files, and its own library's `text -> ids`."""
  folder = tmp_path_factory.mktemp(request.param)
  theirs = _folder(folder, request.param)
  return tokenizers.load(folder), theirs


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(text=unicode_text)
def test_round_trip(loaded, text):
  tokenizer, theirs = loaded
  for sample in (text, *HARD):
    _check_round_trip(tokenizer, theirs, sample)


def _check_round_trip(tokenizer, theirs, text):
  ids = tokenizer.encode(text)
  assert ids == theirs(text)
  assert tokenizer.encode_batch([text, "x"]) == [ids, tokenizer.encode("x")]
  assert not set(ids) & set(tokenizer.specials.values())
  sizes, back = tokenizer.token_bytes(tokenizer.vocab_size), tokenizer.decode(ids)
  shown = "".join(tokenizer.decode_pieces(iter(ids)))
  assert sizes[ids].sum() == len(shown.encode())
  if "\u2581" not in text and not text.startswith(" "):  # which some libraries lose
    assert back == text and shown == tokenizer.prefix * bool(text) + text


def test_saved_and_loaded_again(loaded, tmp_path):
  tokenizer, _ = loaded
  tokenizer.save(tmp_path / "again")
  again = tokenizers.load(tmp_path / "again")
  assert again.fingerprint == tokenizer.fingerprint
  assert (again.bos, again.eos, again.stops) == (
    tokenizer.bos,
    tokenizer.eos,
    tokenizer.stops,
  )
  for text in (*HARD, *TEXTS[:3]):
    assert again.encode(text) == tokenizer.encode(text)


def test_marks(loaded):
  tokenizer, _ = loaded
  names = {id_: name for name, id_ in tokenizer.specials.items()}
  marks = names[tokenizer.bos], names[tokenizer.eos]
  assert marks in ((END, END), ("<s>", "</s>"))
  assert tokenizer.stops == (tokenizer.eos,)


@pytest.mark.parametrize("kind", ["llama", "always", "first", "byte_level"])
def test_control_tokens_as_the_library_reads_them(tmp_path, kind):
  _folder(tmp_path, kind)
  backend = backends.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
  tokenizer = tokenizers.load(tmp_path)
  open_, close = (("<s>", "</s>"), (END, END))[kind == "byte_level"]
  for text in (f"{open_}the cat{close}{open_}sat on{close}", f"hello{close}it", open_):
    ids = tokenizer.encode_special(text)
    assert ids == backend.encode(text, add_special_tokens=False).ids
    for cut in range(1, len(text)):
      head, tail = text[:cut], text[cut:]
      if not re.search("<[^>]*$", head):  # not within a token's name
        both = [*tokenizer.encode_special(head), *tokenizer.encode_special(tail, head)]
        assert tokenizer.decode(both) == tokenizer.decode(ids)


def test_files_beside_it_say_what_opens_ends_and_stops(tmp_path):
  backend = _byte_level()
  backend.add_special_tokens(["<a>", "<b>", "<c>", "<|eot_id|>"])
  backend.save(str(tmp_path / "tokenizer.json"))
  assert tokenizers.load(tmp_path).bos is None
  config = {"bos_token": {"content": "<a>"}, "eos_token": "<b>", "chat_template": "x"}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
  ids = [backend.token_to_id(name) for name in ("<a>", "<b>", "<c>", "<|eot_id|>")]
  (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids[2]}))
  for path in (tmp_path, tmp_path / "tokenizer.json"):
    tokenizer = tokenizers.load(path)
    assert (tokenizer.bos, tokenizer.eos) == (ids[0], ids[1])
    assert tokenizer.stops == tuple(ids[1:])
    assert tokenizer.chat_template == "x"
  (tmp_path / "chat_template.jinja").write_text("y")
  assert tokenizers.load(tmp_path).chat_template == "y"
  config["eos_token"] = "<d>"
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
  with pytest.raises(types.InputError, match="'<d>' is named as bos or eos"):
    tokenizers.load(tmp_path)


def test_llama3_ranks():
  """128,000 ranks and 256 control tokens, of which the ids are published."""
  made = {}
  pieces = [bytes([i]) for i in range(256)]
  pieces += [b"%06d" % i for i in range(128_000 - 256)]
  lines = (base64.b64encode(p) + b" %d" % i for i, p in enumerate(pieces))
  made = ranks.read(b"\n".join(lines))
  assert made.layout == "llama3" and len(made.pieces) == 128_256
  published = {
    "<|begin_of_text|>": 128_000,
    "<|end_of_text|>": 128_001,
    "<|start_header_id|>": 128_006,
    "<|end_header_id|>": 128_007,
    "<|eot_id|>": 128_009,
  }
  assert {name: made.specials[name] for name in published} == published


def test_truncation_padding_and_dropout_are_off(tmp_path):
  backend = _byte_level()
  backend.model.dropout = 0.5
  backend.enable_truncation(2)
  backend.enable_padding(length=50)
  backend.save(str(tmp_path / "tokenizer.json"))
  tokenizer = tokenizers.load(tmp_path)
  ids = tokenizer.encode(TEXTS[0] * 9)
  assert tokenizer.decode(ids) == TEXTS[0] * 9
  assert all(tokenizer.encode(TEXTS[0] * 9) == ids for _ in range(5))


def test_words_added_to_a_vocabulary_are_text(tmp_path):
  backend = _byte_level()
  backend.add_special_tokens([END, "<pad>"])
  backend.add_tokens(["größe"])
  path = tmp_path / "theirs.json"
  backend.save(str(path))
  tokenizer = tokenizers.from_file([], str(path))
  text = "die größe <pad> zählt"
  ids = tokenizer.encode(text)
  assert backend.token_to_id("größe") in ids
  assert tokenizer.decode(ids) == text
  assert tokenizer.token_bytes(400)[ids].sum() == len(text.encode())
  assert tokenizer.token_bytes(400)[backend.token_to_id("<pad>")] == 0


def test_characters(tmp_path):
  tokenizer = tokenizers.characters(["hello", "wörld"])
  assert tokenizer.encoding.alphabet == "dehlorwö"
  assert (tokenizer.bos, tokenizer.eos, tokenizer.stops) == (None, None, ())
  tokenizer.save(tmp_path)
  again = tokenizers.load(tmp_path)
  assert again.decode(again.encode("wörd")) == "wörd"
  assert again.token_bytes(9).tolist() == [1] * 7 + [2, 0]
  with pytest.raises(types.InputError, match=r"character 'x' \(U\+0078\) is not among"):
    again.encode("dox")
  with pytest.raises(types.InputError, match="no text to take characters from"):
    tokenizers.characters([""])


def _write(name, content):
  return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
  "spoil, says",
  [
    (lambda folder: None, "no tokenizer files"),
    (_write("tokenizer.json", b"{}"), "Model missing"),
    (_write("tokenizer.json", b'{"model": '), "Expecting value"),
    (_write("tokenizer.json", b"\xff\xfe\x00"), "not UTF-8"),
    (_write("tokenizer.model", b""), "it is empty"),
    (_write("tokenizer.model", PIECES[:-7]), "ParseFromArray"),
    (
      _write("tokenizer.model", _ranks_file()),
      r"name a layout.*cl100k_base \(100256\)",
    ),
    (
      lambda folder: (
        _write("tokenizer.model", _ranks_file() + b"YWI= 262\n")(folder),
        (folder / "ranks.json").write_text('{"layout": "gpt2"}'),
      ),
      "ranks are not 0, 1, 2",
    ),
    (_write("tokenizer.model", b"YQ== 0\nYg== 1\n"), "bytes have no rank"),
    (_write("tokenizer.model", b"YQ== 0\nb 1\n"), "base64|padding"),
    (
      _write("tokenizer.model", _piece_model(byte_fallback=False, vocab_size=80)),
      "some of the 256 bytes have no token",
    ),
    (_write("characters.json", b'"ba"'), "a sorted string"),
    (
      lambda folder: (
        _gpt2_files(folder),
        (folder / "vocab.bpe").write_text("#version\na b c\n"),
      ),
      "'a b c' is not a merge",
    ),
    (
      lambda folder: backends.Tokenizer(
        backends.models.WordLevel({"日本": 0, END: 1}, END)
      ).save(str(folder / "tokenizer.json")),
      "'日本' is not byte-level",
    ),
    (
      lambda folder: (
        _folder(folder, "llama"),
        (folder / "tokenizer_config.json").write_text("{"),
      ),
      "Expecting",
    ),
  ],
)
def test_damaged_or_unfit_files(tmp_path, spoil, says):
  spoil(tmp_path)
  with pytest.raises(types.InputError, match=says) as error:
    tokenizers.load(tmp_path)
  assert str(error.value).startswith(f"cannot read tokenizer {tmp_path}: ")
  assert "\n" not in str(error.value)


def test_unknown_layout(tmp_path):
  (tmp_path / "tokenizer.model").write_bytes(_ranks_file())
  with pytest.raises(types.InputError, match=r"'llama'.*did you mean 'llama3'"):
    tokenizers.from_file([], str(tmp_path), "llama")
  assert tokenizers.from_file([], str(tmp_path), "gpt2").eos == 261
