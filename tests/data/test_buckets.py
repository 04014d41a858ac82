"""Data in a bucket are those of the same files on a disk."""

import json

import numpy as np
import pytest
from PIL import Image

from gen_jax import build
from gen_jax.data.tokens import documents, store
from gen_jax.system import copies, files
from tests.data.tokens import made, test_documents


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
  for source in (str(home), sent(home)):
    paths = documents.listed(source, None, "train")
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
