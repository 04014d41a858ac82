"""Tokenised text is made once, and anew for whatever it depends on."""

import concurrent.futures
import dataclasses
import os
import pkgutil
import re
import shutil

import numpy as np
import pytest

from gen_jax.data import cache, chat, datasets, embedded, sources, tokenizers
from gen_jax.system import files

BYTES = tokenizers.plain_bytes()
TALKS = dataclasses.replace(BYTES, chat_template=chat.PLAIN)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
  """A cache of its own."""
  monkeypatch.setenv("GEN_JAX_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache" / "tokens"


@pytest.fixture
def source(tmp_path):
  (tmp_path / "a.txt").write_text("some text " * 20)
  return sources.TextFiles(str(tmp_path / "*.txt"), 0.5)


@pytest.fixture
def count(monkeypatch):
  """How often the documents of a split were asked for."""
  calls, plain = [], sources.TextFiles.documents

  def counted(*args):
    return calls.append(1) or plain(*args)

  monkeypatch.setattr(sources.TextFiles, "documents", counted)
  return calls


def _same(a, b):
  return np.array_equal(a.ids, b.ids) and np.array_equal(a.starts, b.starts)


def test_the_second_call_reads(source, count):
  first, second = (cache.tokens(source, "train", BYTES) for _ in range(2))
  assert len(count) == 1 and _same(first, second)
  assert isinstance(second.ids, np.memmap) and not second.ids.flags.writeable
  data = datasets.TextData(source, lambda texts: BYTES, length=8, batch_size=2)
  batch = data.pipeline("train", BYTES, seed=0).batch(0)
  assert len(count) == 1 and batch["inputs"].dtype == np.int32


def test_everything_it_depends_on_is_in_the_key(source, tmp_path):
  other = tokenizers.train_bpe(["some text"], 260)
  keys = [
    cache.key(source, "train", BYTES),
    cache.key(source, "validation", BYTES),
    cache.key(source, "train", other),
    cache.key(sources.TextFiles(source.pattern, 0.4), "train", BYTES),
    cache.key(embedded.Pydoc(), "train", BYTES),
  ]
  assert cache.key(source, "train", tokenizers.plain_bytes()) == keys[0]
  stat = (tmp_path / "a.txt").stat()
  (tmp_path / "a.txt").write_text("same size " * 20)
  os.utime(tmp_path / "a.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
  keys.append(cache.key(source, "train", BYTES))
  (tmp_path / "b.txt").write_text("more")
  keys.append(cache.key(source, "train", BYTES))
  assert len(set(keys)) == len(keys)


def _flip(content, at):
  return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


DAMAGES = {
  "one byte short": lambda b: b[:-1],
  "one byte long": lambda b: b + b"\0",
  "empty": lambda b: b"",
  "its head is gone": lambda b: b[9:],
  "its tail is zeros": lambda b: b[:-9] + bytes(9),
  "a bit of the head": lambda b: _flip(b, 20),
  "a bit of the shape": lambda b: _flip(b, b.index(b"shape") + 9),
  "the last bit": lambda b: _flip(b, len(b) - 1),
  "brackets": lambda b: b"[" * 100_000,
}


@pytest.mark.parametrize("name", ["ids.npy", "starts.npy", "index.json"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_made_anew(source, count, home, name, damage, capsys):
  want = cache.tokenize(source.documents("train"), BYTES)
  cache.tokens(source, "train", BYTES)
  (path,) = home.glob(f"*/{name}")
  content = path.read_bytes()
  if name == "index.json" and b"shape" not in content:
    content = content.replace(b"name", b"shape")  # every damage has its place
  path.write_bytes(damage(content))
  count.clear()
  assert _same(cache.tokens(source, "train", BYTES), want) and len(count) == 1
  assert "is damaged" in capsys.readouterr().err
  assert _same(cache.tokens(source, "train", BYTES), want) and len(count) == 1
  assert not capsys.readouterr().err


@pytest.mark.parametrize("name", ["ids.npy", "starts.npy", "index.json", "*"])
def test_files_of_two_folders_are_not_exchanged(tmp_path, count, home, name, capsys):
  """Each is whole, but of the other split; neither may one be missing."""
  for file, num in (("a", 30), ("b", 40)):
    (tmp_path / f"{file}.txt").write_text(" ".join(map(str, range(num))))
  source = sources.TextFiles(str(tmp_path / "*.txt"), 0.3)
  want = {
    s: cache.tokenize(source.documents(s), BYTES) for s in ("train", "validation")
  }
  for split in want:
    cache.tokens(source, split, BYTES)
  one, other = sorted(home.iterdir())
  for path in sorted(one.glob(name)):
    content = path.read_bytes()
    path.write_bytes((other / path.name).read_bytes())
    (other / path.name).write_bytes(content)
  count.clear()
  assert all(_same(cache.tokens(source, s, BYTES), want[s]) for s in want)
  assert len(count) == 2 and capsys.readouterr().err.count("is damaged") == 2
  next(home.glob(f"*/{name}")).unlink()
  assert all(_same(cache.tokens(source, s, BYTES), want[s]) for s in want)
  assert len(count) == 3


def test_two_writers_at_once(source, home):
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    made = list(pool.map(lambda _: cache.tokens(source, "train", BYTES), range(32)))
  assert all(_same(made[0], other) for other in made)
  assert len(list(home.iterdir())) == 1  # and nothing half written


class Chats:
  """Conversations by the dozen."""

  def identity(self):
    return "chats"

  def conversations(self, split):
    for i in range(40):
      question = {"role": "user", "content": f"{i}? " * (i % 7)}
      yield [question, {"role": "assistant", "content": "yes" * (i % 5)}]


class Documents:
  """Some empty, some longer than several chunks."""

  def identity(self):
    return "documents"

  def documents(self, split):
    return iter(["", "a b " * 300, "c", "", "", "d e " * 20, "f" * 1000, "g", ""])


@pytest.mark.parametrize(
  "read, source, every, encode",
  [
    (cache.tokens, Documents(), 2, "gen_jax.data.slicing.encode_batch"),
    (
      cache.tokens_of_turns,
      Chats(),
      5,
      "gen_jax.data.tokenizers.Tokenizer.encode_turns",
    ),
  ],
)
def test_stopped_at_any_chunk_it_goes_on(
  monkeypatch, home, read, source, every, encode
):
  """Nothing noted is tokenised twice, and the files are those of an unbroken run."""
  monkeypatch.setattr(cache, "_CHUNK_CHARS", 300)
  monkeypatch.setattr(cache, "_CHUNK_TOKENS", 50)
  monkeypatch.setattr(cache, "_JOURNAL_SECS", -1.0)

  def contents():
    (folder,) = home.iterdir()
    return {path.name: path.read_bytes() for path in folder.iterdir()}

  whole = read(source, "train", TALKS)
  made = contents()
  calls, plain = [], pkgutil.resolve_name(encode)

  def counted(*args):
    calls.append(1)
    if len(calls) % every == 0:
      raise KeyboardInterrupt
    return plain(*args)

  shutil.rmtree(home)
  monkeypatch.setattr(encode, counted)
  stops = 0
  while True:
    try:
      found = read(source, "train", TALKS)
      break
    except KeyboardInterrupt:
      stops += 1
      (folder,) = home.iterdir()
      assert folder.name.startswith("partial_")
  assert stops > 2 and _same(found, whole) and contents() == made


def test_what_a_stopped_process_left_is_not_believed(monkeypatch, home, source):
  """A file shorter than the journal says: a machine lost its power."""
  whole = cache.tokens(source, "train", BYTES)
  (folder,) = home.iterdir()
  partial = folder.with_name(f"partial_{folder.name}")
  folder.rename(partial)
  (partial / "index.json").unlink()
  sizes = {"ids": ["<u2", len(whole.ids) + 1], "starts": ["<i8", 1]}
  files.write_json(partial / "journal.json", {"at": [1, 0], "arrays": sizes})
  assert _same(cache.tokens(source, "train", BYTES), whole)
  assert [path.name for path in home.iterdir()] == [folder.name]


def test_a_cache_that_cannot_be_written(source, monkeypatch, tmp_path):
  (tmp_path / "file").touch()
  monkeypatch.setenv("GEN_JAX_CACHE", str(tmp_path / "file"))
  assert len(cache.tokens(source, "train", BYTES).ids) == 101


def test_home(monkeypatch, tmp_path, source):
  monkeypatch.delenv("GEN_JAX_CACHE")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
  cache.tokens(source, "train", BYTES)
  assert list((tmp_path / "xdg" / "gen_jax" / "tokens").iterdir())


def test_a_long_one_says_how_far_it_is(monkeypatch, source, capsys):
  monkeypatch.setattr(cache, "_PATIENCE_SECS", 0.0)
  cache.tokens(source, "train", BYTES)
  assert re.match(r"tokenising: 101 tokens, [\d,]+ a second\n", capsys.readouterr().err)
