"""Sources: where documents and pictures come from.

A text source gives `documents(split)`, a sequence of strings. An image source gives
`examples(split)`, a random-access sequence of {'image': uint8 [H, W, C], 'caption':
str} and more. split is 'train' or 'validation'; where a source has no split of its own,
a fixed share is held out, the same in every run.
"""

import dataclasses
import glob
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from gen_jax.types import InputError, unknown

Example = dict[str, Any]
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class TextSource(Protocol):
  """Documents of text."""

  def documents(self, split: str) -> Sequence[str]:
    """All documents of 'train' or 'validation'."""
    ...


class ImageSource(Protocol):
  """Pictures with captions."""

  def examples(self, split: str) -> Sequence[Example]:
    """All examples of 'train' or 'validation', by random access."""
    ...


@dataclasses.dataclass(frozen=True)
class Mapped(Sequence):
  """`fn` over chosen indices of a sequence, lazily."""

  source: Sequence
  fn: Callable[[Any], Any]
  indices: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.source) if self.indices is None else len(self.indices)

  def __getitem__(self, i: int) -> Any:
    if not 0 <= i < len(self):
      raise IndexError(i)
    return self.fn(self.source[int(i if self.indices is None else self.indices[i])])


def held_out(num: int, split: str, fraction: float) -> np.ndarray:
  """Indices of one split: a fixed random share of num is validation.

  >>> [len(held_out(10, split, 0.2)) for split in ('train', 'validation')]
  [8, 2]
  """
  order = np.random.default_rng(0).permutation(num)
  cut = max(1, round(num * fraction)) if fraction > 0 and num > 1 else 0
  return np.sort(order[:cut] if split == "validation" else order[cut:])


def split_text(documents: Sequence[str], split: str, fraction: float) -> list[str]:
  """The last `fraction` of all characters is validation; one document may be cut.

  >>> split_text(['abcd', 'efghij'], 'validation', 0.3), split_text(['ab'], 'train', 0)
  (['hij'], ['ab'])
  """
  cut = round(sum(map(len, documents)) * (1.0 - fraction))
  parts = []
  for document in documents:
    head, document = document[: max(cut, 0)], document[max(cut, 0) :]
    cut -= len(head)
    parts.append(head if split == "train" else document)
  return [part for part in parts if part]


@dataclasses.dataclass(frozen=True)
class Pydoc:
  """The Python language reference that ships with every Python (pydoc_data.topics).

  Topics quote each other at length; of repeated paragraphs only the first stays, so
  that no paragraph of the validation split occurs in the training split. A tenth of
  the topics, chosen by the hash of their names, is validation.
  """

  def documents(self, split: str) -> Sequence[str]:
    from pydoc_data import topics

    seen = set()
    documents = []
    for name in sorted(topics.topics):
      paragraphs = []
      for paragraph in topics.topics[name].split("\n\n"):
        key = " ".join(paragraph.split())
        if key and key not in seen:
          seen.add(key)
          paragraphs.append(paragraph)
      is_validation = zlib.crc32(name.encode()) % 10 == 0
      if paragraphs and is_validation == (split == "validation"):
        documents.append("\n\n".join(paragraphs))
    return documents


def _files(pattern: str) -> list[pathlib.Path]:
  paths = sorted(p for p in glob.glob(os.path.expanduser(pattern), recursive=True))
  files = [pathlib.Path(p) for p in paths if os.path.isfile(p)]
  if not files:
    raise InputError(f"no file matches {pattern!r}; give a path or a glob (quoted)")
  return files


def _read(path: pathlib.Path) -> str:
  try:
    return path.read_text(encoding="utf-8")
  except UnicodeDecodeError as error:
    raise InputError(f"{path} is not UTF-8 text (byte {error.start})") from None
  except OSError as error:
    raise InputError(f"cannot read {path}: {error.strerror}") from None


@dataclasses.dataclass(frozen=True)
class TextFiles:
  """Every file that matches a path or glob is a document; the tail is validation."""

  pattern: str
  validation_fraction: float = 0.1

  def documents(self, split: str) -> Sequence[str]:
    texts = [_read(path) for path in _files(self.pattern)]
    return split_text(texts, split, self.validation_fraction)


@dataclasses.dataclass(frozen=True)
class JsonLines:
  """Every line of JSONL files is a document, in the given field."""

  pattern: str
  field: str = "text"
  validation_fraction: float = 0.1

  def documents(self, split: str) -> Sequence[str]:
    texts = []
    for path in _files(self.pattern):
      for i, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip():
          continue
        try:
          row = json.loads(line)
        except json.JSONDecodeError as error:
          raise InputError(f"{path}:{i} is not JSON: {error.msg}") from None
        if not isinstance(row, dict) or not isinstance(row.get(self.field), str):
          keys = sorted(row) if isinstance(row, dict) else []
          raise unknown(f"text field (of {path}:{i})", self.field, keys)
        texts.append(row[self.field])
    return split_text(texts, split, self.validation_fraction)


def _tfds_source(dataset: str, data_dir: str | None, split: str) -> Sequence[Example]:
  """A TFDS data set by directory or by name, as a random-access source."""
  import tensorflow_datasets as tfds  # imported here: most runs do not need it

  directory = os.path.expanduser(dataset)
  try:
    if os.path.isdir(directory):
      builder = tfds.builder_from_directory(directory)
    else:
      builder = tfds.builder(
        dataset, data_dir=data_dir, try_gcs=False, file_format="array_record"
      )
      builder.download_and_prepare()
  except Exception as error:  # TFDS raises many kinds; the message is what matters
    reason = (str(error).strip().splitlines() or [repr(error)])[0]
    raise InputError(
      f"cannot open TFDS data set {dataset!r}: {reason}; give a prepared directory"
      " (with dataset_info.json) or a name that TFDS knows"
    ) from None
  if split.split("[")[0] not in builder.info.splits:
    raise unknown(f"split (of {dataset})", split, builder.info.splits)
  return builder.as_data_source(split)


def _field(example: Example, name: str, dataset: str) -> Any:
  if name not in example:
    raise unknown(f"field (of {dataset})", name, example)
  return example[name]


def _text(value: bytes | str) -> str:
  return value.decode("utf-8") if isinstance(value, bytes) else str(value)


@dataclasses.dataclass(frozen=True)
class TfdsText:
  """Any TFDS data set with a text field, by name or prepared directory."""

  dataset: str
  field: str = "text"
  train_split: str = "train"
  validation_split: str = "validation"
  data_dir: str | None = None

  def documents(self, split: str) -> Sequence[str]:
    name = self.train_split if split == "train" else self.validation_split
    source = _tfds_source(self.dataset, self.data_dir, name)
    fn = lambda e: _text(_field(e, self.field, self.dataset))  # noqa: E731
    return Mapped(source, fn)


@dataclasses.dataclass(frozen=True)
class TfdsImages:
  """Any TFDS data set of pictures; the caption is a text field or a class name.

  Attributes:
    caption_field: a text field, or a label whose number is put into `template`.
  """

  dataset: str
  image_field: str = "image"
  caption_field: str = "caption"
  template: str = "{}"
  train_split: str = "train"
  validation_split: str = "test"
  data_dir: str | None = None

  def examples(self, split: str) -> Sequence[Example]:
    name = self.train_split if split == "train" else self.validation_split
    source = _tfds_source(self.dataset, self.data_dir, name)

    def fn(example):
      caption = _text(_field(example, self.caption_field, self.dataset))
      image = np.asarray(_field(example, self.image_field, self.dataset))
      return {**example, "image": image, "caption": self.template.format(caption)}

    return Mapped(source, fn)


@dataclasses.dataclass(frozen=True)
class Digits:
  """The embedded handwritten digits, prepared on first use. See `data.digits`."""

  data_dir: str | None = None

  def examples(self, split: str) -> Sequence[Example]:
    from gen_jax.data.digits import digits_dataset_builder

    builder = digits_dataset_builder.Builder(
      data_dir=self.data_dir, file_format="array_record"
    )
    builder.download_and_prepare()
    source = builder.as_data_source("train" if split == "train" else "test")
    return Mapped(source, lambda e: {**e, "caption": _text(e["caption"])})


def _open_image(path: pathlib.Path) -> np.ndarray:
  try:
    with Image.open(path) as image:
      image = image.convert("RGBA" if "A" in image.getbands() else "RGB")
      if image.mode == "RGBA":  # transparent parts become white paper
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image).convert("RGB")
      return np.asarray(image)
  except (OSError, ValueError) as error:
    raise InputError(f"{path} is not a readable image: {error}") from None


@dataclasses.dataclass(frozen=True)
class ImageFolder:
  """A folder of pictures.

  The caption is the `text` of metadata.jsonl ({"file_name": ..., "text": ...}), else
  the file of the same name with suffix .txt, else the name of the folder it lies in.
  """

  directory: str
  validation_fraction: float = 0.1

  def examples(self, split: str) -> Sequence[Example]:
    root = pathlib.Path(os.path.expanduser(self.directory))
    if not root.is_dir():
      raise InputError(f"image folder {self.directory!r} does not exist")
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
      raise InputError(f"image folder {self.directory!r} holds no {IMAGE_SUFFIXES}")
    captions = {}
    table = root / "metadata.jsonl"
    if table.exists():
      try:
        rows = [json.loads(line) for line in _read(table).splitlines() if line.strip()]
        captions = {row["file_name"]: row["text"] for row in rows}
      except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(
          f"{table}: each line needs file_name and text ({error})"
        ) from None
      missing = [p for p in paths if str(p.relative_to(root)) not in captions]
      if missing:
        raise InputError(
          f"{table} has no caption for {len(missing)} images, first {missing[0]}"
        )

    def fn(path):
      sidecar = path.with_suffix(".txt")
      caption = captions.get(str(path.relative_to(root)))
      if caption is None:
        caption = _read(sidecar).strip() if sidecar.exists() else path.parent.name
      return {"image": _open_image(path), "caption": caption}

    return Mapped(paths, fn, held_out(len(paths), split, self.validation_fraction))


@dataclasses.dataclass(frozen=True)
class Npz:
  """Arrays in one .npz file: images uint8 [N, H, W, C] and captions [N]."""

  path: str
  image_key: str = "image"
  caption_key: str = "caption"
  validation_fraction: float = 0.1

  def examples(self, split: str) -> Sequence[Example]:
    path = os.path.expanduser(self.path)
    try:
      with np.load(path, allow_pickle=False) as file:
        for key in (self.image_key, self.caption_key):
          if key not in file:
            raise unknown(f"array (of {path})", key, file.files)
        images, captions = file[self.image_key], file[self.caption_key]
    except (OSError, ValueError) as error:
      if isinstance(error, InputError):
        raise
      raise InputError(f"cannot read {path}: {error}") from None
    if images.ndim != 4 or images.dtype != np.uint8 or len(images) != len(captions):
      raise InputError(
        f"{path}: {self.image_key} must be uint8 [N, H, W, C] with N captions, got"
        f" {images.dtype} {images.shape} and {len(captions)} captions"
      )

    def fn(i):
      return {"image": images[i], "caption": _text(captions[i])}

    chosen = held_out(len(images), split, self.validation_fraction)
    return Mapped(range(len(images)), fn, chosen)
