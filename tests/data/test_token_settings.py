"""The files next to a vocabulary: what they say is read, or refused by name."""

import io
import json

import pytest
import sentencepiece

from gen_jax import types
from gen_jax.data import encodings, token_settings, tokenizer_json, tokenizers

END = tokenizers.END_OF_TEXT
SPECIAL, CONFIG, GENERATION, ADDED, TEMPLATE = token_settings.FILES


def _bytes_folder(folder, names=(END,), **others):
  backend = encodings.byte_level(tokenizer_json.byte_values(), [], names)
  backend.save(str(folder / "tokenizer.json"))
  for name, value in others.items():
    (folder / f"{name}.json").write_text(json.dumps(value))
  return tokenizers.load(folder)


def test_names_flags_and_stops(tmp_path):
  made = _bytes_folder(
    tmp_path,
    ("<a>", "<b>", "<c>"),
    special_tokens_map={"bos_token": "<b>", "eos_token": "<c>"},
    tokenizer_config={"bos_token": {"content": "<a>"}, "add_bos_token": True},
    generation_config={"eos_token_id": [257, 258]},
  )
  assert (made.bos, made.eos, made.opening) == (256, 258, (256,))
  assert made.stops == (258, 257)


def test_a_token_of_the_vocabulary_that_is_named_becomes_a_control_token(tmp_path):
  config = {"eos_token": "z", "additional_special_tokens": ["y"], "pad_token": "x"}
  made = _bytes_folder(tmp_path, tokenizer_config=config)
  assert (made.specials["z"], made.specials["y"], made.pad) == (122, 121, 120)
  assert "x" not in made.specials and made.decode([119, 120, 121, 122]) == "wx"
  made.save(tmp_path / "again")
  again = tokenizers.load(tmp_path / "again")
  assert (again.specials, again.pad) == (made.specials, made.pad)


@pytest.mark.parametrize(
  "name, value, says",
  [
    (CONFIG, [], r"tokenizer_config.json is \[\]; an object is needed"),
    (SPECIAL, "x", "special_tokens_map.json is 'x'; an object"),
    (GENERATION, None, "generation_config.json is None; an object"),
    (ADDED, 5, "added_tokens.json is 5; an object"),
    (CONFIG, {"bos_token": 5}, "bos_token is 5; the text of a token"),
    (CONFIG, {"eos_token": {"x": 1}}, "eos_token is .*; the text of a token"),
    (CONFIG, {"pad_token": [1]}, r"pad_token is \[1\]; the text of a token"),
    (
      CONFIG,
      {"additional_special_tokens": 5},
      "additional_special_tokens is 5; a list",
    ),
    (CONFIG, {"extra_special_tokens": [5]}, "extra_special_tokens is 5; the text"),
    (CONFIG, {"add_bos_token": "yes"}, "add_bos_token is 'yes'; true or false"),
    (CONFIG, {"legacy": 1}, "legacy is 1; true or false"),
    (CONFIG, {"added_tokens_decoder": [1]}, "is .1.; an object"),
    (
      CONFIG,
      {"added_tokens_decoder": {"x": {"content": "a"}}},
      "'x'; an id|'x'; an id",
    ),
    (CONFIG, {"added_tokens_decoder": {"1": {}}}, "the text of a token"),
    (CONFIG, {"chat_template": 5}, "chat_template is 5; text"),
    (CONFIG, {"chat_template": [5]}, "an entry of chat_template is 5"),
    (GENERATION, {"eos_token_id": -1}, "eos_token_id is -1; an id"),
    (GENERATION, {"eos_token_id": [1e9]}, "eos_token_id is 1000000000.0; an id"),
    (GENERATION, {"eos_token_id": True}, "eos_token_id is True; an id"),
    (GENERATION, {"eos_token_id": 2**31}, "eos_token_id is 2147483648; an id"),
    (ADDED, {"a": 1.5}, "'a' is 1.5; an id"),
    (ADDED, {"zz": 257}, "'zz' is added as 257; tokenizer.json has no such token"),
    (ADDED, {"zz": 300_000_000}, "'zz' is added as 300000000"),
    (ADDED, {END: 3}, "is added as 3; tokenizer.json has 256"),
  ],
)
def test_what_cannot_be_is_named(tmp_path, name, value, says):
  with pytest.raises(types.InputError, match=says) as error:
    _bytes_folder(tmp_path, **{name.removesuffix(".json"): value})
  assert "\n" not in str(error.value)


def test_templates(tmp_path):
  several = [
    {"name": "tool_use", "template": "t"},
    {"name": "default", "template": "d"},
  ]
  for value in (several, "d", {"default": "d"}):
    made = _bytes_folder(tmp_path, tokenizer_config={"chat_template": value})
    assert made.chat_template == "d"
  (tmp_path / TEMPLATE).write_bytes(b"\xef\xbb\xbfj")
  assert tokenizers.load(tmp_path).chat_template == "j"


@pytest.mark.parametrize("decoder", [True, False])
def test_tokens_that_files_add_to_a_vocabulary(tmp_path, decoder):
  values = tokenizer_json.byte_values()
  (tmp_path / "vocab.json").write_text(json.dumps({**values, END: 256}))
  (tmp_path / "merges.txt").write_text("#version: 0.2\n")
  added = {"<im>": (257, True), "word": (258, False)}
  config = {"additional_special_tokens": ["<im>"], "eos_token": END}
  if decoder:
    config["added_tokens_decoder"] = {
      i: {"content": name, "special": special, "normalized": False}
      for name, (i, special) in added.items()
    }
  else:
    ids = {name: i for name, (i, _) in added.items()}
    (tmp_path / ADDED).write_text(json.dumps(ids))
  (tmp_path / CONFIG).write_text(json.dumps(config))
  made = tokenizers.load(tmp_path)
  assert made.specials == {END: 256, "<im>": 257} and made.opening == ()
  assert made.encode("a word") == [97, 32, 258]
  assert made.encode_special("<im>word") == [257, 258]
  (tmp_path / ADDED).write_text(json.dumps({"<im>": 257, "word": 258, "x<": 262}))
  with pytest.raises(types.InputError, match=r"'x<' has id 262, but 259"):
    tokenizers.load(tmp_path)
  (tmp_path / "vocab.json").write_text(json.dumps({**values, END: 300_000_000}))
  with pytest.raises(
    types.InputError, match="id 300000000 is far beyond its 257 entries"
  ):
    tokenizers.load(tmp_path)


@pytest.mark.parametrize("kind", ["Qwen2Tokenizer", "RobertaTokenizerFast", "X"])
def test_two_files_of_a_class_with_words_of_its_own(tmp_path, kind):
  values = tokenizer_json.byte_values()
  (tmp_path / "vocab.json").write_text(json.dumps({**values, END: 256}))
  (tmp_path / "merges.txt").write_text("#version: 0.2\n")
  assert tokenizers.load(tmp_path).eos == 256
  (tmp_path / CONFIG).write_text(json.dumps({"tokenizer_class": kind}))
  with pytest.raises(types.InputError, match="pre-tokenisation of its own"):
    tokenizers.load(tmp_path)


def _pieces() -> bytes:
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["the cat sat on the mat"] * 20),
    model_writer=model,
    model_type="bpe",
    vocab_size=285,
    byte_fallback=True,
    normalization_rule_name="nfkc",
    minloglevel=2,
  )
  return model.getvalue()


PIECES = _pieces()


@pytest.mark.parametrize(
  "settings, first, inner",
  [
    ({}, "\u2581", "\u2581"),
    ({"legacy": True}, "\u2581", "\u2581"),
    ({"legacy": False}, "\u2581", ""),
    ({"legacy": False, "add_prefix_space": True}, "\u2581", ""),
    ({"add_prefix_space": False}, "", ""),
  ],
)
def test_spaces_of_sentencepiece(tmp_path, settings, first, inner):
  (tmp_path / "tokenizer.model").write_bytes(PIECES)
  (tmp_path / CONFIG).write_text(json.dumps(settings))
  made = tokenizers.load(tmp_path)
  theirs = sentencepiece.SentencePieceProcessor(model_proto=PIECES)

  def written(ids):
    return "".join(theirs.id_to_piece(i) for i in ids)

  made.save(tmp_path / "again")
  again = tokenizers.load(tmp_path / "again")
  assert again.fingerprint == made.fingerprint
  assert again.encode_special("<s>cat") == made.encode_special("<s>cat")
  assert written(made.encode("cat")) == f"{first}cat"
  assert written(made.encode_special("<s>cat</s>")) == f"<s>{inner}cat</s>"
  assert written(made.encode_special("cat", after="<s>the ")) == "cat"
  assert made.opening == (theirs.bos_id(),) and made.ends() == (theirs.eos_id(),)
  assert made.decode(made.encode("the cat")) == "the cat"
  if first:
    for text in ("  the\u3000cat ", "\ufb01 \u2581x", "é\x00"):  # its own normaliser
      assert made.encode(text) == theirs.encode(text)


def test_control_tokens_added_to_sentencepiece(tmp_path):
  (tmp_path / "tokenizer.model").write_bytes(PIECES)
  (tmp_path / ADDED).write_text(json.dumps({"<pad>": 285}))
  (tmp_path / CONFIG).write_text(json.dumps({"pad_token": "<pad>"}))
  made = tokenizers.load(tmp_path)
  assert (made.pad, made.vocab_size) == (285, 286)
  made.save(tmp_path / "again")
  again = tokenizers.load(tmp_path / "again")
  assert (again.pad, again.specials) == (made.pad, made.specials)
  (tmp_path / ADDED).write_text(json.dumps({"<pad>": 300_000_000}))
  with pytest.raises(types.InputError, match="with id 300000000 is not read"):
    tokenizers.load(tmp_path)
