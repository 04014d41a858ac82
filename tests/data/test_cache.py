"""Tokenised text is made once, and anew for whatever it depends on."""

import concurrent.futures
import os

import numpy as np
import pytest

from gen_jax.data import cache, datasets, embedded, sources, tokenizers

BYTES = tokenizers.plain_bytes()


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
  """How often a split was tokenised."""
  calls, plain = [], cache.tokenize
  monkeypatch.setattr(cache, "tokenize", lambda *args: calls.append(1) or plain(*args))
  return calls


def _same(a, b):
  return np.array_equal(a.ids, b.ids) and np.array_equal(a.starts, b.starts)


def test_the_second_call_reads(source, count):
  first, second = (cache.stream(source, "train", BYTES) for _ in range(2))
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


@pytest.mark.parametrize("name", ["ids.npy", "starts.npy"])
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[9:]])
def test_a_damaged_file_is_made_anew(source, count, home, name, damage):
  first = cache.stream(source, "train", BYTES)
  (path,) = home.glob(f"*/{name}")
  path.write_bytes(damage(path.read_bytes()))
  assert _same(cache.stream(source, "train", BYTES), first) and len(count) == 2
  assert _same(cache.stream(source, "train", BYTES), first) and len(count) == 2


def test_two_writers_at_once(source, home):
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    made = list(pool.map(lambda _: cache.stream(source, "train", BYTES), range(32)))
  assert all(_same(made[0], other) for other in made)
  assert len(list(home.iterdir())) == 1  # and nothing half written


def test_a_cache_that_cannot_be_written(source, monkeypatch, tmp_path):
  (tmp_path / "file").touch()
  monkeypatch.setenv("GEN_JAX_CACHE", str(tmp_path / "file"))
  assert len(cache.stream(source, "train", BYTES).ids) == 101


def test_home(monkeypatch, tmp_path, source):
  monkeypatch.delenv("GEN_JAX_CACHE")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
  cache.stream(source, "train", BYTES)
  assert list((tmp_path / "xdg" / "gen_jax" / "tokens").iterdir())
