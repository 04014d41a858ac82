"""Data in a bucket are those of the same files on a disk."""

import contextlib
import json

import numpy as np
import pytest
from PIL import Image

from gen_jax import build
from gen_jax.data import rows, tokenizers
from gen_jax.data.tokens import documents, folder, making, source, store
from gen_jax.system import blocks, copies, files
from gen_jax.types import InputError
from tests import s3
from tests.data.stored import images, test_packing
from tests.data.tokens import made, test_documents, test_making
from tests.system import test_buckets


@pytest.fixture(params=["bucket", "gs_bucket"])
def sent(request, tmp_path):
  """Sends a folder of this disk into a bucket, and returns its address."""
  root = request.getfixturevalue(request.param)

  def send(folder):
    copies.copy(folder, files.path(f"{root}/{folder.name}", "x"))
    return f"{root}/{folder.name}"

  return send


def test_a_token_store_is_read_shard_by_shard(sent, tmp_path):
  home = tmp_path / "tokens"
  made.of_shards(home, {"train": [made.documents([5, 9, 3]), made.documents([40], 3)]})
  address = sent(home)
  here, there = (store.open_store(files.path(p, "x"), 0) for p in (home, address))
  one, other = (found.stream("train", 0.0) for found in (here, there))
  assert len(one) == len(other) > 50
  for start in (0, 3, 15, 20):
    found = one.window(start, start + 30).ids
    np.testing.assert_array_equal(found, other.window(start, start + 30).ids)


def test_documents_are_read_by_their_bytes(sent, tmp_path):
  home = tmp_path / "corpus"
  (home / "sub").mkdir(parents=True)
  texts = [f"text {i} " * i for i in range(50)]
  lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
  (home / "sub" / "a.jsonl").write_text(lines)
  found = []
  for given in (str(home), sent(home)):
    paths = documents.listed(given, None, "train")
    found.append(test_documents.joined(test_documents.read(paths, 500)))
  assert found[0] == found[1] == texts


def test_folders_of_images_and_text_are_sources(sent, tmp_path):
  home = tmp_path / "images"
  home.mkdir()
  for i in range(4):
    Image.new("L", (8, 8), 50 * i).save(home / f"{i}.png")
    (home / f"{i}.txt").write_text(f"number {i}")
  address = sent(home)
  pixels, lines = [], []
  for root in (str(home), address):
    source = build.build("source", {"name": "image_folder", "directory": root})
    pixels.append([np.asarray(e["image"]).tolist() for e in source.examples("train")])
    source = build.build("source", {"name": "files", "pattern": f"{root}/*.txt"})
    lines.append(list(source.documents("train")))
  assert pixels[0] == pixels[1] and lines[0] == lines[1]


@contextlib.contextmanager
def counted(s3_port):
  """A bucket behind a line that counts the bytes of answers; and the line."""
  line = s3.Line(s3_port)
  with s3.at(line.port), test_buckets.fresh():
    blocks.forget()
    yield files.path(s3.make_bucket("s3"), "x"), line


def test_of_a_token_store_the_parts_that_a_host_needs_are_read(s3_port, tmp_path):
  """Eight rows of 2 MB of tokens cost less than a quarter of it, and their bytes."""
  home = tmp_path / "store"
  made.of_shards(home, {"train": [[np.arange(100) for _ in range(10_000)]]})
  tokenizer = tokenizers.plain_bytes()
  how = {"length": 64, "batch_size": 16, "seed": 0, "rows": rows.windows}
  with counted(s3_port) as (root, line):
    copies.copy(home, root / "store")
    feeds = [
      source.Tokens(str(p), 0.0).feed("train", tokenizer, **how)
      for p in (home, root / "store")
    ]
    before = line.received
    part = slice(8, 16)  # of one of two hosts
    want, found = (feed.batch(3, part) for feed in feeds)
    size = line.received - before
    for name in want:
      np.testing.assert_array_equal(found[name], want[name])
    assert 8 * blocks.SIZE < size < 25 * blocks.SIZE < 2_000_000 / 4
    feeds[1].batch(3, part)
    assert line.received == before + size  # kept


def test_image_stores_are_read_image_by_image_and_made_in_buckets(s3_port, tmp_path):
  folder = images.folder(tmp_path / "in", test_packing.NUM)
  given = test_packing.job(folder)
  here = test_packing.packed(tmp_path / "s", given)
  with counted(s3_port) as (root, line):
    assert not test_packing.killed(root / "s", folder, after=2)
    there = test_packing.packed(root / "s", given, 2)
    assert test_packing.content(root / "s") == test_packing.content(tmp_path / "s")
    one, other = (found.examples("train") for found in (here, there))
    for i in (7, 0, 11):
      np.testing.assert_array_equal(one[i]["image"], other[i]["image"])
    before = line.received
    assert other[7]["caption"] == one[7]["caption"]
    assert line.received == before  # kept


@pytest.mark.long
def test_a_token_store_in_a_bucket_is_the_same_killed_and_resumed(bucket, tmp_path):
  home = tmp_path / "corpus"
  home.mkdir()
  texts = [f"Document {i} of the corpus. " * (i % 9 + 1) for i in range(400)]
  for i in range(2):
    part = "".join(json.dumps({"text": text}) + "\n" for text in texts[i::2])
    (home / f"{i}.jsonl").write_text(part)
  for changes in ({}, {"duplicates": "exact"}):
    given = test_making.job(home, **changes)
    want = tmp_path / f"want{len(changes)}"
    making.make(want, given, 1)
    root = files.path(f"{bucket}/{want.name}", "x")
    if not changes:
      assert not test_making.killed(root, home, after=2)
      assert not (root / store.MANIFEST).exists()
      with pytest.raises(InputError, match="unfinished store of another held_out"):
        making.make(root, test_making.job(home, held_out=0.3), 1)
    making.make(root, given, 2)
    assert test_packing.content(root) == test_packing.content(want)
    assert not folder.Folder(root).here.exists()
    making.make(root, given, 2)  # it is there


def test_a_store_that_another_machine_has_finished_stays(bucket, tmp_path):
  """What a slower command finds: a manifest, and pieces that are cleared away."""
  home = test_packing.images.folder(tmp_path / "in", 12)
  given = test_packing.job(home, held_out=0.0)
  root = files.path(f"{bucket}/s", "x")
  place = folder.Folder(root)
  making.make(root, given, 1)
  before = test_packing.content(root)
  with pytest.raises(FileExistsError):
    place.finish(root / store.MANIFEST, {})
  assert test_packing.content(root) == before


@pytest.mark.parametrize("form", ["tars", "parquet"])
def test_images_of_a_bucket_are_packed(form, bucket, tmp_path):
  pytest.importorskip("pyarrow")
  home = getattr(images, form)(tmp_path / "in", 12)
  copies.copy(home, files.path(f"{bucket}/in", "x"))
  for name, given in (("here", home), ("there", f"{bucket}/in")):
    test_packing.packed(tmp_path / name, test_packing.job(given, held_out=0.0))
  want, found = (test_packing.content(tmp_path / name) for name in ("here", "there"))
  assert want == found
  with pytest.raises(InputError, match="no file matches"):
    test_packing.job(f"{bucket}/none", held_out=0.0)
  folder = images.folder(tmp_path / "folder", 3)
  copies.copy(folder, files.path(f"{bucket}/folder", "x"))
  with pytest.raises(InputError, match=r"--source .* is an address"):
    test_packing.job(f"{bucket}/folder")
