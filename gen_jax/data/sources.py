"""Sources: where documents and pictures come from.

A text source gives `documents(split)`, a sequence of strings. An image source gives
`examples(split)`, a random-access sequence of {'image': uint8 [H, W, C], 'caption':
str} and more; 'loss_weight' is what an example counts, 1 where it is not said. split is
'train' or 'validation'; where a source has no split of its own, a fixed share is held
out, the same in every run.
"""

import dataclasses
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from gen_jax import files
from gen_jax.types import InputError, unknown

Example = dict[str, Any]
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class TextSource(Protocol):
  """Documents of text."""

  def documents(self, split: str) -> Sequence[str]:
    """All documents of 'train' or 'validation'."""
    ...

  def identity(self) -> str:
    """Changes whenever the documents may have, but for the source's own fields."""
    ...


class ImageSource(Protocol):
  """Pictures with captions."""

  def examples(self, split: str) -> Sequence[Example]:
    """All examples of 'train' or 'validation', by random access."""
    ...


class Exam(NamedTuple):
  """Prompts to draw for, and an independent judge of what was drawn.

  Attributes:
    captions: N of them.
    judge: pictures uint8 [N, H, W, C], one per caption -> {name: value}.
    real_accuracy: the judge's accuracy on real pictures that it has not seen.
  """

  captions: list[str]
  judge: Callable[[np.ndarray], dict[str, float]]
  real_accuracy: float


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


def file_of(examples: Sequence, i: int) -> str | None:
  """The file that an example was read from, where each has one of its own."""
  while isinstance(examples, Mapped):
    i = int(i if examples.indices is None else examples.indices[i])
    examples = examples.source
  item = examples[i] if isinstance(examples, list) else None
  return str(item) if isinstance(item, str | pathlib.Path) else None


def _check_fraction(fraction: float) -> None:
  if not 0 <= fraction < 1:
    raise InputError(f"validation_fraction={fraction} must be in [0, 1)")


def held_out(num: int, split: str, fraction: float) -> np.ndarray:
  """Indices of one split: a fixed random share of num is validation.

  >>> [len(held_out(10, split, 0.2)) for split in ('train', 'validation')]
  [8, 2]
  """
  _check_fraction(fraction)
  order = np.random.default_rng(0).permutation(num)
  cut = max(1, round(num * fraction)) if fraction > 0 and num > 1 else 0
  return np.sort(order[:cut] if split == "validation" else order[cut:])


def split_text(documents: Sequence[str], split: str, fraction: float) -> list[str]:
  """The last `fraction` of all characters is validation; one document may be cut.

  >>> split_text(['abcd', 'efghij'], 'validation', 0.3), split_text(['ab'], 'train', 0)
  (['hij'], ['ab'])
  """
  _check_fraction(fraction)
  cut = int(sum(map(len, documents)) * (1.0 - fraction) + 1e-6)  # as nanoGPT cuts
  parts = []
  for document in documents:
    head, document = document[: max(cut, 0)], document[max(cut, 0) :]
    cut -= len(head)
    parts.append(head if split == "train" else document)
  return [part for part in parts if part]


def _split(texts: list[str], split: str, pattern: str, fraction: float) -> list[str]:
  if not any(texts):
    raise InputError(f"there is no text in {pattern!r}; give other files")
  return split_text(texts, split, fraction)


@dataclasses.dataclass(frozen=True)
class TextFiles:
  """Every file that matches a path or glob is a document; the tail is validation."""

  pattern: str
  validation_fraction: float = 0.1

  def documents(self, split: str) -> Sequence[str]:
    texts = [files.read(path) for path in files.matching(self.pattern)]
    return _split(texts, split, self.pattern, self.validation_fraction)

  def identity(self) -> str:
    return files.stamps(files.matching(self.pattern))


@dataclasses.dataclass(frozen=True)
class JsonLines:
  """Every line of JSONL files is a document, in the given field."""

  pattern: str
  field: str = "text"
  validation_fraction: float = 0.1

  def documents(self, split: str) -> Sequence[str]:
    paths = files.matching(self.pattern)
    texts = [text for path in paths for (text,) in files.text_fields(path, self.field)]
    return _split(texts, split, self.pattern, self.validation_fraction)

  def identity(self) -> str:
    return files.stamps(files.matching(self.pattern))


def _tfds_builder(dataset: str, data_dir: str | None):
  """A TFDS data set by directory or by name, prepared."""
  import tensorflow_datasets as tfds  # imported here: most runs do not need it

  directory = os.path.expanduser(dataset)
  try:
    if os.path.isdir(directory):
      return tfds.builder_from_directory(directory)
    builder = tfds.builder(
      dataset, data_dir=data_dir, try_gcs=False, file_format="array_record"
    )
    builder.download_and_prepare()
    return builder
  except Exception as error:  # TFDS raises many kinds; the message is what matters
    raise InputError(
      f"cannot open TFDS data set {dataset!r}: {_first_line(error)}; give a prepared"
      " directory (with dataset_info.json) or a name that TFDS knows"
    ) from None


def _tfds_source(dataset: str, data_dir: str | None, split: str) -> Sequence[Example]:
  """One split of a TFDS data set, by random access."""
  builder = _tfds_builder(dataset, data_dir)
  if re.split(r"[\[+]", split)[0] not in builder.info.splits:
    raise unknown(f"split (of {dataset})", split, builder.info.splits)
  try:
    return builder.as_data_source(split)
  except Exception as error:
    raise InputError(
      f"cannot read split {split!r} of TFDS data set {dataset!r}:"
      f" {_first_line(error)}; there are: {', '.join(builder.info.splits)}, and the"
      " files must be array_record"
    ) from None


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [repr(error)])[0].rstrip(".")


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
    where = f"{self.field} of {self.dataset}"
    fn = lambda e: files.text(files.field(e, self.field, self.dataset), where)  # noqa: E731
    return Mapped(source, fn)

  def identity(self) -> str:
    folder = _tfds_builder(self.dataset, self.data_dir).data_path
    return files.stamps(sorted(pathlib.Path(folder).iterdir()))


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

  def __post_init__(self):
    try:
      self.template.format("")
    except (LookupError, ValueError) as error:
      raise InputError(
        f"template={self.template!r} must have {{}} where the caption goes ({error})"
      ) from None

  def examples(self, split: str) -> Sequence[Example]:
    name = self.train_split if split == "train" else self.validation_split
    source = _tfds_source(self.dataset, self.data_dir, name)

    def fn(example):
      caption = files.field(example, self.caption_field, self.dataset)
      if isinstance(caption, int | np.integer):
        caption = str(caption)
      caption = files.text(caption, f"{self.caption_field} of {self.dataset}")
      image = np.asarray(files.field(example, self.image_field, self.dataset))
      if image.dtype != np.uint8:
        raise InputError(
          f"{self.image_field} of {self.dataset} is {image.dtype}; uint8 is needed"
        )
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
    return Mapped(source, lambda e: {**e, "caption": e["caption"].decode()})

  def exam(self, num: int, image_size: int) -> Exam:
    """ "a handwritten zero" to "... nine", in turn; see `data.digits.judge`."""
    from gen_jax.data.digits import judge

    return judge.exam(self, num, image_size)


def open_image(path: pathlib.Path) -> np.ndarray:
  """uint8 [H, W, 3]; transparent parts become white paper."""
  try:
    with Image.open(path) as image:
      if image.mode.startswith("I;16"):  # Pillow would clip 16 bits to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
      elif image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}; 8 or 16 bits per channel are needed")
      if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
      return np.asarray(image.convert("RGB"))
  # Pillow says SyntaxError of some broken PNGs.
  except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
    raise InputError(
      f"{path} is not a readable image ({error}); repair it or take it away"
    ) from None


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
      raise InputError(f"image folder {self.directory!r} is not a folder")
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
      raise InputError(
        f"image folder {self.directory!r} holds no images ({', '.join(IMAGE_SUFFIXES)})"
      )
    captions = _captions(root, paths)

    def fn(path):
      return {"image": open_image(path), "caption": captions(path)}

    return Mapped(paths, fn, held_out(len(paths), split, self.validation_fraction))


def _captions(
  root: pathlib.Path, paths: Sequence[pathlib.Path]
) -> Callable[[pathlib.Path], str]:
  """How to look up an image's caption; checks that none is missing."""
  table = root / "metadata.jsonl"
  if table.exists():
    texts = {
      root / name: text for name, text in files.text_fields(table, "file_name", "text")
    }
    missing, home = [p for p in paths if p not in texts], str(table)
  else:
    missing, home = [p for p in paths if not p.with_suffix(".txt").exists()], ".txt"
  if missing and (table.exists() or len(missing) < len(paths)):
    raise InputError(
      f"{len(missing)} of {len(paths)} images in {root} have no caption in {home}, the"
      f" first is {missing[0]}; write the missing captions"
    )
  if table.exists():
    return texts.__getitem__
  if missing:
    return lambda path: files.text(path.parent.name, str(path))
  return lambda path: files.read(path.with_suffix(".txt")).strip()


@dataclasses.dataclass(frozen=True)
class Npz:
  """Arrays in one .npz file: images uint8 [N, H, W, C] and captions [N]."""

  path: str
  image_key: str = "image"
  caption_key: str = "caption"
  validation_fraction: float = 0.1

  def examples(self, split: str) -> Sequence[Example]:
    path = os.path.expanduser(self.path)
    keys = self.image_key, self.caption_key
    try:
      with zipfile.ZipFile(path):  # np.load would take other formats as well
        pass
      with np.load(path, allow_pickle=False) as file:
        names = file.files
        arrays = [np.asarray(file[key]) for key in keys if key in names]
    except Exception as error:  # numpy and zipfile raise many kinds
      raise InputError(
        f"cannot read {path}: {_first_line(error)}; an .npz file without pickled"
        " objects is needed"
      ) from None
    for key in keys:
      if key not in names:
        raise unknown(f"array (of {path})", key, names)
    images, captions = arrays
    shape = f"{images.dtype} {list(images.shape)}"
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
      raise InputError(
        f"{path}: {self.image_key} is {shape}; uint8 [N, H, W, C] with C of 1 or 3 is"
        " needed"
      )
    if captions.dtype.kind not in "US" or captions.shape != images.shape[:1]:
      raise InputError(
        f"{path}: {self.caption_key} is {captions.dtype} {list(captions.shape)}; one"
        f" string for each of the {len(images)} images is needed"
      )

    def fn(i):
      return {
        "image": images[i],
        "caption": files.text(captions[i], f"{path}, caption {i}"),
      }

    chosen = held_out(len(images), split, self.validation_fraction)
    return Mapped(range(len(images)), fn, chosen)
