"""Stores: what is written is read, in any window, and what is broken is named."""

import struct

import numpy as np
import pytest

from gen_jax import types
from gen_jax.data import tokenizers
from gen_jax.data.tokens import indexed, store
from tests.data.tokens import made

SIZES = ([3, 1, 5], [2], [4, 4, 1, 7])
ALL = [size for sizes in SIZES for size in sizes]


@pytest.fixture
def path(tmp_path):
  """27 tokens that count up, in three shards."""
  found = made.documents(ALL)
  parts, at = [], 0
  for sizes in SIZES:
    parts.append(found[at : at + len(sizes)])
    at += len(sizes)
  validation = [made.documents([6], first=100)]
  return made.of_shards(tmp_path / "store", {"train": parts, "validation": validation})


def train(path, eos=None):
  return store.open_store(path, eos).stream("train", 0.0)


def test_every_window_is_that_of_all_tokens_in_a_row(path):
  """From the definition, for all starts and stops, over the shards' edges."""
  stream, total = train(path), sum(ALL)
  assert len(stream) == total
  begins = set(np.cumsum([0, *ALL]).tolist())
  for start in range(total):
    for stop in range(start + 1, total + 3):
      window = stream.window(start, stop)
      want = np.arange(start, min(stop, total))
      np.testing.assert_array_equal(window.ids, want)
      starts = [i for i, at in enumerate(want) if i == 0 or at in begins]
      np.testing.assert_array_equal(window.starts, starts)


def test_a_part_is_a_stream_of_its_own(path):
  part = train(path).part(4, 20).part(1, 10)
  assert len(part) == 9
  window = part.window(2, 50)
  np.testing.assert_array_equal(window.ids, np.arange(7, 14))
  np.testing.assert_array_equal(window.starts, [0, 2, 4])  # documents at 9 and 11


def test_documents_are_read_back(path):
  tokenizer = tokenizers.plain_bytes()
  texts = store.Texts(lambda: [(train(path), tokenizer), (train(path), tokenizer)])
  assert len(texts) == 16
  assert texts[2] == texts[10] == bytes(range(4, 9)).decode()
  with pytest.raises(IndexError):
    texts[16]


def test_splits_are_those_of_the_store_or_its_tail(path, tmp_path):
  opened = store.open_store(path, None)
  assert len(opened.stream("validation", 0.5)) == 6
  alone = made.of_shards(tmp_path / "alone", {"train": [made.documents([10, 10])]})
  opened = store.open_store(alone, None)
  for split, want in (("train", range(16)), ("validation", range(16, 20))):
    ids = opened.stream(split, 0.2).window(0, 99).ids
    np.testing.assert_array_equal(ids, want)


def foreign_index(sizes, documents, code=8, width=2):
  """An .idx written from the format's description."""
  pointers = np.cumsum([0, *sizes])[:-1] * width
  head = b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, code)
  head += struct.pack("<QQ", len(sizes), len(documents))
  arrays = np.int32(sizes), np.int64(pointers), np.int64(documents)
  return head + b"".join(array.tobytes() for array in arrays)


def test_a_shard_is_megatrons_format_to_the_byte(tmp_path):
  made.shard(tmp_path / "a", made.documents([3, 1, 4]))
  assert (tmp_path / "a.idx").read_bytes() == foreign_index([3, 1, 4], [0, 1, 2, 3])
  want = np.arange(8, dtype=np.uint16).tobytes()
  assert (tmp_path / "a.bin").read_bytes() == want


@pytest.mark.parametrize("given", ["a", "a.bin", "a.idx"])
def test_megatrons_documents_of_several_sequences(tmp_path, given):
  ids = np.arange(70_000, 70_010, dtype=np.int32)
  (tmp_path / "a.bin").write_bytes(ids.tobytes())
  index = foreign_index([3, 1, 4, 2], [0, 2, 4], code=4, width=4)
  (tmp_path / "a.idx").write_bytes(index)
  window = train(tmp_path / given).window(1, 9)
  np.testing.assert_array_equal(window.ids, ids[1:9])
  np.testing.assert_array_equal(window.starts, [0, 3])


def test_nanogpts_ids_end_with_a_token(tmp_path):
  ids = np.array([5, 6, 9, 7, 9, 9, 8], np.uint16)
  ids.tofile(tmp_path / "train.bin")
  ids[:3].tofile(tmp_path / "val.bin")
  for given in (tmp_path, tmp_path / "train.bin"):
    stream = train(given, eos=9)
    for start in range(7):
      window = stream.window(start, 7)
      np.testing.assert_array_equal(window.ids, ids[start:])
      want = {0, *(at - start for at in (3, 5, 6) if at >= start)}
      np.testing.assert_array_equal(window.starts, sorted(want))
  opened = store.open_store(tmp_path, 9)
  assert len(opened.stream("validation", 0.0)) == 3


@pytest.mark.parametrize("name", ["train-00001-00000.bin", "train-00002-00000.idx"])
def test_a_shard_that_is_cut_off_is_named(path, name):
  content = (path / name).read_bytes()
  (path / name).write_bytes(content[:-1])
  with pytest.raises(types.InputError, match=f"{name} is cut off"):
    train(path)
  (path / name).unlink()
  with pytest.raises(types.InputError, match=f"{name}: No such file"):
    train(path)


@pytest.mark.parametrize("end", ["bin", "idx"])
def test_foreign_files_that_are_cut_off_are_named(tmp_path, end):
  made.shard(tmp_path / "a", made.documents([30, 10]))
  file = tmp_path / f"a.{end}"
  file.write_bytes(file.read_bytes()[:-2])
  indexed.open_shard.cache_clear()
  with pytest.raises(types.InputError, match=rf"a\.{end} is cut off"):
    train(tmp_path / "a")


def test_a_shard_of_another_dtype_is_named(path):
  manifest = store.read_manifest(path)
  shards = manifest["splits"]["train"]
  shards[1] = made.shard(path / shards[1]["name"], made.documents([1]), np.int32)
  shards[1]["tokens"] = 2  # as many bytes
  made.files.write_json(path / store.MANIFEST, made.files.sealed(manifest))
  indexed.open_shard.cache_clear()
  with pytest.raises(
    types.InputError, match=r"train-00001-00000 holds int32, .*uint16"
  ):
    train(path).window(0, 27)


def test_another_tokenizer_is_refused(path):
  opened = store.open_store(path, None)
  opened.check_tokenizer(tokenizers.plain_bytes())
  with pytest.raises(types.InputError, match="made with another tokenizer"):
    opened.check_tokenizer(tokenizers.characters(["ab"]))


def test_what_is_no_store_says_what_would_be_one(tmp_path, path):
  with pytest.raises(types.InputError, match="holds no tokens: give"):
    train(tmp_path)
  (tmp_path / store.ABOUT).write_text("{}")
  with pytest.raises(types.InputError, match="not finished"):
    train(tmp_path)
  manifest = (path / store.MANIFEST).read_text()
  (path / store.MANIFEST).write_text(manifest.replace("uint16", "uint32"))
  with pytest.raises(types.InputError, match="damaged"):
    train(path)


@pytest.mark.parametrize(
  "change",
  [
    {"splits": {"train": None}},
    {"splits": {"train": ["x"]}},
    {"splits": {"train": [{"name": "a", "tokens": 1, "documents": 1}]}},
    {"splits": {"train": [{"name": 3, "tokens": 1, "documents": 1, "sha256": ""}]}},
    {"splits": []},
    {"tokenizer": None},
    {"dtype": 3},
  ],
)
def test_a_manifest_that_was_edited_and_has_no_hash_is_damaged(path, change):
  manifest = store.read_manifest(path)
  made.files.write_json(path / store.MANIFEST, {**manifest, **change})
  with pytest.raises(types.InputError, match="is damaged: it lacks parts"):
    train(path)


@pytest.mark.parametrize("kind", ["codes", [], None])
def test_a_kind_of_store_that_we_do_not_know_is_none_of_tokens(path, kind):
  manifest = store.read_manifest(path)
  made.files.write_json(path / store.MANIFEST, {**manifest, "kind": kind})
  with pytest.raises(types.InputError, match="unknown kind of store"):
    train(path)
