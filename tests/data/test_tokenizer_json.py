"""tokenizer.json: ids, what stands around a text, added tokens as in its library."""

import json

import hypothesis
import pytest
import tokenizers as backends
from hypothesis import strategies

from gen_jax import types
from gen_jax.data import encodings, tokenizer_json, tokenizers

kinds, rules, marks = (
  backends.pre_tokenizers,
  backends.normalizers,
  backends.processors,
)
TEXTS = ["the cat sat on the mat", "hello world, it is 1984", "die Größe zählt"] * 20
QWEN = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _trained(normalizer=None, words=None, suffix=None) -> backends.Tokenizer:
  options = {"end_of_word_suffix": suffix} if suffix else {}
  backend = backends.Tokenizer(backends.models.BPE(**options))
  if normalizer:
    backend.normalizer = normalizer
  backend.pre_tokenizer = words or kinds.ByteLevel(add_prefix_space=False)
  backend.decoder = backends.decoders.ByteLevel()
  trainer = backends.trainers.BpeTrainer(
    initial_alphabet=kinds.ByteLevel.alphabet(),
    show_progress=False,
    vocab_size=320,
    **options,
  )
  backend.train_from_iterator(TEXTS, trainer)
  backend.add_special_tokens(["<s>", "</s>"])
  return backend


def _clip() -> backends.Tokenizer:
  values = tokenizer_json.byte_values()
  vocab = {**values, **{f"{c}</w>": 256 + i for c, i in values.items()}}
  vocab |= {"the": 512, "the</w>": 513, "<|startoftext|>": 514, "<|endoftext|>": 515}
  merges = b"#version: 0.2\nt h\nth e\nth e</w>\n"
  vocab["th"] = 516
  made = encodings.clip(json.dumps(vocab).encode(), merges, tokenizer_json.Settings())
  return backends.Tokenizer.from_str(made.source.decode())


FORMS = {
  "nfc": lambda: _trained(rules.NFC()),
  "qwen": lambda: _trained(
    rules.NFC(),
    kinds.Sequence(
      [
        kinds.Split(backends.Regex(QWEN), "isolated"),
        kinds.ByteLevel(False, False, False),
      ]
    ),
  ),
  "roberta": lambda: _trained(None, kinds.ByteLevel(add_prefix_space=True)),
  "lossy": lambda: _trained(
    rules.Sequence(
      [rules.Strip(), rules.NFKC(), rules.Lowercase(), rules.StripAccents()]
    )
  ),
  "clip": _clip,
}


@pytest.fixture(scope="module", params=FORMS)
def pair(request, tmp_path_factory):
  """A tokenizer, and its own library's."""
  backend, folder = FORMS[request.param](), tmp_path_factory.mktemp(request.param)
  backend.save(str(folder / "tokenizer.json"))
  made = tokenizers.load(folder)
  backend.encode_special_tokens = True
  return made, backend


odd = strategies.text(
  strategies.one_of(
    strategies.characters(codec="utf-8"),
    strategies.sampled_from("the\u0301 \u212b\ufb01İ</s>|\x85'"),
  )
)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(text=odd)
def test_ids_and_text_are_the_librarys(pair, text):
  tokenizer, backend = pair
  for each in (
    text,
    "e\u0301 \u212b",
    " A",
    "<s>the THE</s>",
    "<|endoftext|>!",
    "\u2581",
  ):
    ids = tokenizer.encode(each)
    assert ids == (backend.encode(each, add_special_tokens=False).ids if each else [])
    assert [*tokenizer.opening, *ids, *tokenizer.closing] == (
      backend.encode(each).ids if each else [*tokenizer.opening, *tokenizer.closing]
    )
    words = backend.decode(ids).replace("</w>", " ")
    assert tokenizer.decode(ids) == words.removeprefix(tokenizer.prefix)
    size = tokenizer.token_bytes(tokenizer.vocab_size)[ids].sum()
    assert size == len("".join(tokenizer.decode_pieces(ids)).encode())


@pytest.mark.parametrize(
  "processor, settings, opening, closing",
  [
    (None, {}, "", ""),
    (None, {"bos_token": "<s>", "eos_token": "</s>"}, "", ""),
    (None, {"bos_token": "<s>", "add_bos_token": False}, "", ""),
    (None, {"bos_token": "<s>", "add_bos_token": True}, "<s>", ""),
    (None, {"bos_token": None, "add_bos_token": True}, "", ""),
    (None, {"add_bos_token": True, "add_eos_token": True}, "<s>", "</s>"),
    ("template", {}, "<s>", ""),
    ("template", {"bos_token": "</s>"}, "<s>", ""),
    ("template", {"add_bos_token": None}, "<s>", ""),
    ("template", {"add_eos_token": True}, "<s>", "</s>"),
    ("roberta", {}, "<s>", "</s>"),
    ("bert", {}, "<s>", "</s>"),
    ("sequence", {}, "<s>", "</s>"),
    ("bytes", {}, "", ""),
  ],
)
def test_what_opens_and_closes_a_text(tmp_path, processor, settings, opening, closing):
  backend = _trained()
  ids = {name: backend.token_to_id(name) for name in ("<s>", "</s>")}
  bos, eos = ids.items()
  template = marks.TemplateProcessing("<s> $A", "<s> $A $B", [bos])
  made = {
    "template": lambda: template,
    "roberta": lambda: marks.RobertaProcessing(eos, bos),
    "bert": lambda: marks.BertProcessing(eos, bos),
    "sequence": lambda: marks.Sequence(
      [marks.ByteLevel(), marks.TemplateProcessing("<s> $A </s>", "$A $B", [bos, eos])]
    ),
    "bytes": lambda: marks.ByteLevel(trim_offsets=True),
  }
  if processor:
    backend.post_processor = made[processor]()
  backend.save(str(tmp_path / "tokenizer.json"))
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
  tokenizer = tokenizers.load(tmp_path)
  tokenizer.save(tmp_path / "again")
  for each in (tokenizer, tokenizers.load(tmp_path / "again")):
    assert each.opening == tuple(ids[name] for name in [opening] if name)
    assert each.closing == tuple(ids[name] for name in [closing] if name)
    assert each.ends() == (ids["</s>"],)
  # An empty prompt must begin with something: bos, where nothing else opens texts.
  alone = tokenizer.opening or (() if tokenizer.bos is None else (tokenizer.bos,))
  assert tokenizer.opens("") == alone and tokenizer.opens("a") == tokenizer.opening


@pytest.mark.parametrize("spaced", [True, False])
@pytest.mark.parametrize("had", [True, False])
def test_a_space_before_texts_is_what_the_settings_say(tmp_path, had, spaced):
  wanted = _trained()
  wanted.pre_tokenizer = kinds.ByteLevel(add_prefix_space=had)
  wanted.save(str(tmp_path / "tokenizer.json"))
  wanted.pre_tokenizer = kinds.ByteLevel(add_prefix_space=spaced)
  (tmp_path / "tokenizer_config.json").write_text(
    json.dumps({"add_prefix_space": spaced})
  )
  made = tokenizers.load(tmp_path)
  made.save(tmp_path / "again")
  for each in (made, tokenizers.load(tmp_path / "again")):
    assert each.encode("cat") == wanted.encode("cat", add_special_tokens=False).ids
    assert each.encode_special("<s>cat")[1:] == each.encode("cat")
    assert each.decode(each.encode("cat")) == "cat"


ADDED = [
  backends.AddedToken("<l>", lstrip=True, special=True, normalized=False),
  backends.AddedToken("<r>", rstrip=True, special=True, normalized=False),
  backends.AddedToken("<lr>", lstrip=True, rstrip=True, special=True, normalized=False),
  backends.AddedToken("<w>", single_word=True, special=True, normalized=False),
  backends.AddedToken("<text>", lstrip=True, special=False, normalized=False),
  backends.AddedToken("word", single_word=True, special=False, normalized=True),
]


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
  parts=strategies.lists(
    strategies.sampled_from(
      [
        "<s>",
        "<l>",
        "<r>",
        "<lr>",
        "<w>",
        "<text>",
        "word",
        " ",
        "\n",
        "\x1c",
        "a",
        "é",
      ]
    ),
    max_size=9,
  )
)
def test_added_tokens_take_what_the_library_has_them_take(parts):
  backend = _added_backend()
  tokenizer = tokenizers._made(tokenizer_json.read(backend.to_str().encode()))
  text = "".join(parts)
  wanted = backend.encode(text, add_special_tokens=False).ids
  assert tokenizer.encode_special(text) == wanted
  backend.encode_special_tokens = True
  if text:
    wanted = backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) == wanted


_SHARED = _trained()


def _added_backend() -> backends.Tokenizer:
  made = backends.Tokenizer.from_str(_SHARED.to_str())
  made.add_special_tokens([token for token in ADDED if token.special])
  made.add_tokens([token for token in ADDED if not token.special])
  return made


def _template(names, id_) -> dict:
  """A post-processor that puts these before a text, `id_` where it is no text."""
  parts = [
    {"Sequence": {"id": "A", "type_id": 0}}
    if name == "$A"
    else {"SpecialToken": {"id": name, "type_id": 0}}
    for name in [*names, "$A"]
  ]
  tokens = {
    name: {"id": name, "ids": [id_], "tokens": [name]} for name in names if name != "$A"
  }
  return {
    "type": "TemplateProcessing",
    "single": parts,
    "pair": parts,
    "special_tokens": tokens,
  }


@pytest.mark.parametrize(
  "change, says",
  [
    (lambda c: c["model"]["vocab"].update(zz=300_000_000), "far beyond"),
    (lambda c: c["model"]["vocab"].update(zz=2**31 - 1), "far beyond"),
    (lambda c: c["added_tokens"][0].update(id=300_000_000), "'<s>' has id 300000000"),
    (lambda c: c["added_tokens"][0].update(id=5), "'<s>' has id 5"),
    (
      lambda c: c["model"]["vocab"].update(zz=c["model"]["vocab"].pop("A")),
      "some of the 256 bytes have no token",
    ),
    (
      lambda c: c.update(
        model={"type": "WordLevel", "vocab": c["model"]["vocab"], "unk_token": "a"}
      ),
      "its model is WordLevel",
    ),
    (lambda c: c["model"].update(continuing_subword_prefix="##", merges=[]), "'##'"),
    (lambda c: c["model"].update(continuing_subword_prefix="##"), "slice index"),
    (lambda c: c.update(post_processor=_template(["a"], 5)), "does more than put"),
    (lambda c: c.update(post_processor=_template(["<s>"], 300_000_000)), "does more"),
    (lambda c: c.update(post_processor=_template(["<s>", "$A"], 297)), "does more"),
    (lambda c: c.update(padding={"strategy": "x"}), "unknown variant"),
  ],
)
def test_what_is_not_honoured_is_refused(tmp_path, change, says):
  config = json.loads(_SHARED.to_str())
  change(config)
  (tmp_path / "tokenizer.json").write_text(json.dumps(config))
  with pytest.raises(types.InputError, match=says):
    tokenizers.load(tmp_path)
