"""Captioned images for tests, in every form that is packed."""

import io
import json
import tarfile

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "fox")


def encoded(i, form="PNG"):
  """Image number i of 6 x 5 pixels, as bytes of a file."""
  pixels = np.random.default_rng(i).integers(0, 256, (6, 5, 3), np.uint8)
  Image.fromarray(pixels).save(file := io.BytesIO(), form)
  return file.getvalue()


def all_of(num):
  """(bytes, caption, class) of images 0 ... num - 1."""
  forms = ("PNG", "JPEG", "WEBP")
  return [(encoded(i, forms[i % 3]), f"image number {i}", i % 3) for i in range(num)]


def folder(home, num, *, captions=True):
  """A folder of images in folders of classes, with a table of captions."""
  rows = []
  for i, (content, caption, label) in enumerate(all_of(num)):
    name = f"{CLASSES[label]}/{i:04}.{('png', 'jpg', 'webp')[i % 3]}"
    (home / name).parent.mkdir(parents=True, exist_ok=True)
    (home / name).write_bytes(content)
    rows.append(json.dumps({"file_name": name, "text": caption}) + "\n")
  if captions:
    (home / "metadata.jsonl").write_text("".join(rows))
  return home


def add(tar, name, content):
  """Adds a file to a tar."""
  member = tarfile.TarInfo(name)
  member.size = len(content)
  tar.addfile(member, io.BytesIO(content))


def tars(home, num, parts=2):
  """Tars in the manner of WebDataset: image, .txt, .cls and a .json to pass over."""
  home.mkdir(exist_ok=True)
  found = all_of(num)
  for part in range(parts):
    with tarfile.open(home / f"{part}.tar", "w") as tar:
      for i in range(part * num // parts, (part + 1) * num // parts):
        content, caption, label = found[i]
        add(tar, f"{i:04}.{('png', 'jpg', 'webp')[i % 3]}", content)
        add(tar, f"{i:04}.txt", f"{caption}\n".encode())
        add(tar, f"{i:04}.cls", str(label).encode())
        add(tar, f"{i:04}.seg.png", b"no image")
        add(tar, f"{i:04}.json", b'{"url": "x"}')
  return home


def parquet(home, num):
  """A table as data sets of the hub have them: {bytes, path}, caption, class."""
  import pyarrow
  from pyarrow import parquet

  home.mkdir(exist_ok=True)
  rows = [
    {"image": {"bytes": c, "path": None}, "text": t, "class": n}
    for c, t, n in all_of(num)
  ]
  table = pyarrow.Table.from_pylist(rows)
  parquet.write_table(table, home / "0.parquet", row_group_size=7)
  return home
