"""The one reader of paths, text and JSON: laws, and no exception but InputError."""

import contextlib
import json
import random
import types as python_types

import hypothesis
import pytest
from hypothesis import strategies
from PIL import Image

from gen_jax import build, ranges
from gen_jax.build import config_files
from gen_jax.cli import evaluate_images, report
from gen_jax.convert import to_transformers
from gen_jax.data import cache, conversations, edits, latents, sources, tokenizers
from gen_jax.evaluation import features, scoring
from gen_jax.runs import run as runs
from gen_jax.runs import weights as weighing
from gen_jax.runs import workdir
from gen_jax.system import files, globs
from gen_jax.train import init_from, writers
from gen_jax.types import InputError

MARK = b"\xef\xbb\xbf"


@hypothesis.given(strategies.text(strategies.characters(exclude_characters="\n\r")))
def test_a_line_is_what_stands_between_line_feeds(text):
  """Whatever else Unicode calls the end of a line is a character of it."""
  assert files.lines(text) == ([text] if text else [])
  assert files.lines(f"{text}\r\n{text}\n") == [text, text]


@pytest.mark.parametrize(
  "pattern, found",
  [
    ("data [1]/*.txt", ["data [1]/a.txt", "data [1]/b[2].txt"]),
    ("data [1]/b[2].txt", ["data [1]/b[2].txt"]),
    ("data [1]/b[[]2].txt", ["data [1]/b[2].txt"]),
    ("*/b[2].txt", ["data [1]/b[2].txt"]),
    ("data*/[ab].txt", ["data [1]/a.txt", "data1/a.txt"]),
    ("data[1]/*", ["data1/a.txt"]),  # there is no folder of that name: a pattern
    ("**/a.txt", ["data [1]/a.txt", "data1/a.txt", "deep/er/a.txt"]),
    ("**/er/*.txt", ["deep/er/a.txt"]),
    ("./deep/../data1/a.txt", ["deep/../data1/a.txt"]),
  ],
)
def test_names_that_are_there_are_no_patterns(tmp_path, monkeypatch, pattern, found):
  for name in ("data [1]/a.txt", "data [1]/b[2].txt", "data1/a.txt", "deep/er/a.txt"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(name)
  monkeypatch.chdir(tmp_path)
  assert [str(path) for path in globs.matching(pattern)] == found
  absolute = globs.matching(str(tmp_path / pattern))
  assert [str(path.relative_to(tmp_path)) for path in absolute] == found
  with pytest.raises(InputError, match="no file matches"):
    globs.matching(f"{pattern}/x")


def _chats(path):
  conversations.Chats(str(path), validation_fraction=0.0).conversations("train")


def _parallel(path):
  other = path.with_name("other")
  other.write_text("one\ntwo\n")
  conversations.Parallel(str(path), str(other)).conversations("train")


def _edits(path):
  edits.EditFolder(str(path.parent), path.name, validation_fraction=0.0).edits("train")


def _page(path):
  """The report of the workdir that the file lies in, or in a folder of it."""
  home = path.parent.parent if path.parent.name in ("samples", "edits") else path.parent
  report._section(runs.Run(home, _CONFIG), "plot")


def _base(path):
  """With a loader that finds nothing, however it is asked."""

  def refuse(source, experiment):
    raise InputError("no such weights")

  source = weighing.init_from.InitFrom("nowhere")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(weighing, "_load", refuse)
    weighing.load_base(path.parent, python_types.SimpleNamespace(source=source))


_TURNS = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
_BYTES = tokenizers.plain_bytes()
_CONFIG = config_files.load("configs/lm/pydoc.py:smoke")
_HASHES = {"ids": "a" * 64, "starts": "b" * 64}
_NOTES = {"step": 3, "weights": "ema", "sha256": "c" * 64}
# {where a file lies: (reader, what is right there: one value, or one a line)}
READERS = {
  "a.jsonl": (
    lambda p: sources.JsonLines(str(p)).documents("train"),
    [{"text": "one"}, {"text": "two"}],
  ),
  "a.txt": (lambda p: sources.TextFiles(str(p)).documents("train"), [{"a": "text"}]),
  "alpaca.json": (
    lambda p: conversations.Alpaca(str(p)).conversations("train"),
    [{"instruction": "x", "input": None, "output": "y"}],
  ),
  "chats.jsonl": (_chats, [{"messages": _TURNS}]),
  "a.en": (_parallel, [{"a": "line"}, {"a": "line"}]),
  "metadata.jsonl": (_edits, [{"before": "a", "instruction": "b", "after": "c"}]),
  "questions.jsonl": (
    lambda p: scoring.read_questions(files.read(p), str(p)),
    [{"context": "a", "choices": ["b", "cc"], "label": 0}],
  ),
  "config.json": (lambda p: workdir.read_config(p.parent), _CONFIG),
  "metrics.jsonl": (
    lambda p: writers.JsonLines(p.parent, 9).close(),
    [{"step": 3, "loss": 1.5}],
  ),
  "latents.json": (
    lambda p: latents.read_statistics(p.parent),
    {"mean": [0.5], "std": [1.5], "sha256": "a" * 64},
  ),
  "against.json": (evaluate_images.read, {"fid": 1.5, "protocol": {"num": 3}}),
  "evaluation.json": (_page, {"fid": 1.5, "protocol": {"num": 3}}),
  "samples/text.jsonl": (_page, [{"prompt": "a", "text": "b"}]),
  "samples/prompts.json": (_page, {"prompts": ["a", "b"], "seed": 3}),
  "edits/prompts.json": (_page, {"prompts": ["a", "b"], "seed": 3}),
  "init_from.json": (_base, _NOTES),
  "tokenizer_config.json": (
    lambda p: to_transformers._name_tokenizer(p.parent),
    {"a": 1},
  ),
  "tokenizer.json": (tokenizers.load, json.loads(_BYTES.encoding.source)),
  "tokens/index.json": (
    lambda p: cache._read(p.parent),
    {"name": "tokens", "sha256": _HASHES},
  ),
}
NASTY = [
  *(None, True, -1, 0, 1.5, 2**63, 10**300, "", "x", "\ud800", [], {}, [None], {"": 1}),
  *(json.loads("[" * 99 + "]" * 99), json.loads('{"a":' * 99 + "1" + "}" * 99)),
]
# As no value of Python, or none that is written, would say it.
RAW = ["1e999", "-1e999999", "NaN", "9" * 400, "9" * 5000, "[" * 10**5, '{"a":' * 10**5]
RAW += ["[" * 101 + "]" * 101, '{"a": 1, "a": 2}', '"\\ud800"', "\x00", "'a'", "01"]


def _places(value, place=()):
  """All paths into a value."""
  yield place
  if isinstance(value, dict | list):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
      yield from _places(item, (*place, key))


def _put(value, place, new):
  """The value with another one at a place, or with the key gone for KeyError."""
  if not place:
    return new
  first, *rest = place
  copy = dict(value) if isinstance(value, dict) else list(value)
  if new is KeyError and not rest:
    del copy[first]
  else:
    copy[first] = _put(value[first], rest, new)
  return copy


def _written(value):
  is_lines = isinstance(value, list)
  return "\n".join(map(json.dumps, value)) if is_lines else json.dumps(value)


def _damaged(value, rng):
  """Bytes that are nearly what is right."""
  places = list(_places(value))[1:]
  kind = rng.choice(["value", "value", "raw", "bytes", "whole"])
  if kind == "value":
    return _written(
      _put(value, rng.choice(places), rng.choice([*NASTY, KeyError]))
    ).encode("utf-8", "surrogatepass")
  if kind == "raw":
    text = _written(_put(value, rng.choice(places), "RAW"))
    return text.replace('"RAW"', rng.choice(RAW)).encode("utf-8", "surrogatepass")
  content = _written(value).encode()
  if kind == "whole":
    return rng.choice(
      [b"", b"null", b"3", b"[]", b"{}", b'"x"', b"[[1]]", bytes(99), MARK]
    )
  at = rng.randrange(len(content))
  return rng.choice(
    [
      content[:at],
      content[:at] + bytes(len(content) - at),
      content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :],
      content[:at] + rng.randbytes(3) + content[at:],
    ]
  )


@pytest.fixture
def place(tmp_path, monkeypatch):
  """Where the file of a name lies, in a workdir with the images that a report shows."""
  for folder in ("samples", "edits", "tokens"):
    (tmp_path / folder).mkdir()
  (tmp_path / "samples/grid.png").touch()
  (tmp_path / "edits/before_after.png").touch()
  for name in ("samples/prompts.json", "edits/prompts.json"):
    (tmp_path / name).write_text('{"prompts": []}')
  (tmp_path / "tokenizer.json").write_bytes(_BYTES.encoding.source)
  return lambda name: tmp_path / name


@pytest.mark.parametrize("name", READERS)
def test_what_is_damaged_is_refused_in_one_line_or_read(name, place, capsys):
  """200 damages of each; with a byte-order mark and Windows' line ends it is right."""
  read, value = READERS[name]
  rng, path, num_refused = random.Random(name), place(name), 0
  for _ in range(200):
    path.write_bytes(_damaged(value, rng))
    try:
      read(path)
    except InputError as error:
      num_refused += 1
      assert "\n" not in str(error) and len(str(error)) < 2500
  assert num_refused > 20 or name in ("a.txt", "a.en", "metrics.jsonl")
  if not name.startswith("tokenizer"):
    path.write_bytes(MARK + _written(value).replace("\n", "\r\n").encode() + b"\r\n")
    expected = {"metadata.jsonl": "does not exist", "init_from.json": "no such weights"}
    expected["tokens/index.json"] = "No such file"
    with (
      pytest.raises(InputError, match=expected[name])
      if name in expected
      else contextlib.nullcontext()
    ):
      read(path)


_ADDRESS = "ftp://host/x"
_PATHS = set(
  "pattern path directory prior_directory data_dir dataset source target".split()
)
_NOT_PATHS = set(
  "field image_field caption_field template train_split validation_split prompt"
  " prior_prompt table before instruction after image_key caption_key".split()
)
_READS = ("documents", "conversations", "examples", "edits", "codes")


@pytest.mark.parametrize("name", build.TABLES["source"])
def test_every_path_of_a_source_is_refused_if_it_is_an_address(name, tmp_path):
  keys = build.TABLES["source"][name].keys()
  texts = {k: p for k, p in keys.items() if str in ranges.options(p.annotation)}
  assert not texts.keys() - _PATHS - _NOT_PATHS, "are these paths?"
  file, image = tmp_path / "a.txt", tmp_path / "a.png"
  file.write_text("a\n")
  Image.new("RGB", (8, 8)).save(image)
  for bad in texts.keys() & _PATHS:
    needed = [k for k, p in texts.items() if p.default is p.empty]
    block = {k: str(tmp_path if "directory" in k else file) for k in needed}
    block[bad] = _ADDRESS
    if bad == "prior_directory":
      block["prior_prompt"] = "x"
    source = build.build("source", {"name": name, **block})
    read = next(getattr(source, n) for n in _READS if hasattr(source, n))
    with pytest.raises(InputError, match=f"'{_ADDRESS}' is an address"):
      list(read("train"))


@pytest.mark.parametrize(
  "read",
  [
    lambda: tokenizers.from_file([], _ADDRESS),
    lambda: init_from.InitFrom(_ADDRESS).directory,
    lambda: features.inception(_ADDRESS),
    lambda: features.efficientnet_lite0(_ADDRESS),
  ],
)
def test_other_paths_of_a_config_are_refused_as_well(read):
  with pytest.raises(InputError, match=f"'{_ADDRESS}' is an address"):
    read()


@pytest.mark.parametrize("name", ["GEN_JAX_CACHE", "XDG_CACHE_HOME"])
def test_the_cache_is_no_address(name, monkeypatch):
  monkeypatch.delenv("GEN_JAX_CACHE", raising=False)
  monkeypatch.setenv(name, _ADDRESS)
  with pytest.raises(InputError, match=f"{name} '{_ADDRESS}' is an address"):
    files.cache_folder("tokens")


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_sealed_file_that_is_damaged_says_what_to_do(tmp_path, content):
  path = tmp_path / "hours.json"
  path.write_text(content)
  with pytest.raises(InputError, match=r"hours.json .*; restore the file from a copy"):
    files.read_sealed(path)
