"""Sources of documents and images.

A text source gives `documents(split)`, a sequence of strings. An image source gives
`examples(split)`, a random-access sequence of {'image': uint8 [H, W, C], 'caption':
str} and more; 'loss_weight' is an example's weight, 1 by default. One that knows
classes also gives `class_names()`, and each example its 'label', a number among them.
split is 'train' or 'validation'; a source without splits holds out a fixed share, the
same in every run.
"""

import dataclasses
import pathlib
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from gen_jax import ranges
from gen_jax.data import folders, image_files, tfds
from gen_jax.errors import InputError, first_line, unknown
from gen_jax.system import copies, files, globs

Example = dict[str, Any]
open_image = image_files.open_image  # old name, for one release


# Methods that some sources have and others have not.
GIVES = (
  *("documents", "conversations", "feed"),  # of text, and batches of their own
  *("examples", "edits", "codes"),  # of images, pairs of them, and their latents
  *("class_names", "paths", "statistics", "prompt_benchmark"),
  *("captions", "readers"),  # texts without images; how many examples to make at once
)


def gives(source: Any) -> frozenset[str]:
  """Which of `GIVES` a source, or a class of sources, has."""
  return frozenset(name for name in GIVES if hasattr(source, name))


class TextSource(Protocol):
  """Documents of text."""

  def documents(self, split: str) -> Sequence[str]:
    """All documents of 'train' or 'validation'."""

  def identity(self) -> str:
    """A string that changes with the source's files; its fields need not be in it."""


class ImageSource(Protocol):
  """Images with captions."""

  def examples(self, split: str) -> Sequence[Example]:
    """All examples of 'train' or 'validation', by random access."""


def called(made: Any) -> str:
  """A source by its class, for messages."""
  return f"data.source {type(made).__name__}"


class PromptBenchmark(NamedTuple):
  """Prompts, and an independent scorer of the images drawn for them.

  Attributes:
    captions: N prompts.
    scorer: images uint8 [N, H, W, C], one per caption -> {name: value}.
    real_accuracy: the scorer's accuracy on held-out real images.
  """

  captions: list[str]
  scorer: Callable[[np.ndarray], dict[str, float]]
  real_accuracy: float


@dataclasses.dataclass(frozen=True)
class Mapped(Sequence):
  """`fn` mapped lazily over the given indices of a sequence (None: all)."""

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
  """The file of an example, if each example has its own."""
  while isinstance(examples, Mapped):
    i = int(i if examples.indices is None else examples.indices[i])
    examples = examples.source
  item = examples[i] if isinstance(examples, list) else None
  return str(item) if isinstance(item, str | pathlib.Path) else None


@ranges.checked
def held_out(num: int, split: str, fraction: ranges.ProperFraction) -> np.ndarray:
  """Indices of one split: a fixed random share of num is validation.

  >>> [len(held_out(10, split, 0.2)) for split in ('train', 'validation')]
  [8, 2]
  """
  order = np.random.default_rng(0).permutation(num)
  cut = max(1, round(num * fraction)) if fraction > 0 and num > 1 else 0
  return np.sort(order[:cut] if split == "validation" else order[cut:])


@ranges.checked
def split_text(
  documents: Sequence[str], split: str, fraction: ranges.ProperFraction
) -> list[str]:
  """Splits off the last `fraction` of all characters; may cut one document.

  >>> split_text(['abcd', 'efghij'], 'validation', 0.3), split_text(['ab'], 'train', 0)
  (['hij'], ['ab'])
  """
  cut = int(sum(map(len, documents)) * (1.0 - fraction) + 1e-6)  # as nanoGPT cuts
  parts = []
  for document in documents:
    head, document = document[: max(cut, 0)], document[max(cut, 0) :]
    cut -= len(head)
    parts.append(head if split == "train" else document)
  return [part for part in parts if part]


def _split(texts: list[str], split: str, pattern: str, fraction: float) -> list[str]:
  if not any(texts):
    raise InputError(f"no text in {pattern!r}; give other files")
  return split_text(texts, split, fraction)


class Matching:
  """A source of the files that match its `pattern`."""

  def __post_init__(self) -> None:
    ranges.check(self)

  def identity(self) -> str:
    return files.stamps(globs.matching(self.pattern))


@dataclasses.dataclass(frozen=True)
class TextFiles(Matching):
  """One document per file of a path or glob; the tail is validation."""

  pattern: str
  validation_fraction: ranges.ProperFraction = 0.1

  def documents(self, split: str) -> Sequence[str]:
    texts = [files.read(path) for path in globs.matching(self.pattern)]
    return _split(texts, split, self.pattern, self.validation_fraction)


@dataclasses.dataclass(frozen=True)
class JsonLines(Matching):
  """One document per line of JSONL files, in the given field."""

  pattern: str
  field: str = "text"
  validation_fraction: ranges.ProperFraction = 0.1

  def documents(self, split: str) -> Sequence[str]:
    paths = globs.matching(self.pattern)
    texts = [text for path in paths for (text,) in files.text_fields(path, self.field)]
    return _split(texts, split, self.pattern, self.validation_fraction)


def checked(source: Sequence[Example], where: str) -> Sequence[Example]:
  """A split of TFDS; InputError for a damaged example."""

  def read(i: int) -> Example:
    try:
      return source[i]
    except Exception as error:  # of many kinds
      raise InputError(
        f"example {i} of {where} is damaged ({first_line(error)}); prepare the data set"
        " again"
      ) from None

  return Mapped(range(len(source)), read)


def _tfds_split(of: Any, split: str) -> Sequence[Example]:
  name = of.train_split if split == "train" else of.validation_split
  source = tfds.split_of(of.dataset, of.data_dir, name)
  return checked(source, f"split {name!r} of {of.dataset!r}")


@dataclasses.dataclass(frozen=True)
class TfdsText:
  """Any TFDS data set with a text field, by name or prepared directory."""

  dataset: str
  field: str = "text"
  train_split: str = "train"
  validation_split: str = "validation"
  data_dir: str | None = None

  def documents(self, split: str) -> Sequence[str]:
    source = _tfds_split(self, split)
    where = f"{self.field} of {self.dataset}"

    def text(example):
      return files.text(files.field(example, self.field, self.dataset), where)

    return Mapped(source, text)

  def identity(self) -> str:
    folder = tfds.builder(self.dataset, self.data_dir).data_path
    return files.stamps(sorted(pathlib.Path(folder).iterdir()))


@dataclasses.dataclass(frozen=True)
class TfdsImages:
  """Any TFDS data set of images; the caption is a text field or a class name.

  Attributes:
    caption_field: a text field, or a label, whose number is the caption.
    template: format string of the caption, with one {}.
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
    source = _tfds_split(self, split)

    def fn(example):
      caption = files.field(example, self.caption_field, self.dataset)
      label = {}
      if isinstance(caption, int | np.integer):
        label, caption = {"label": int(caption)}, str(caption)
      caption = files.text(caption, f"{self.caption_field} of {self.dataset}")
      image = np.asarray(files.field(example, self.image_field, self.dataset))
      if image.dtype != np.uint8:
        raise InputError(
          f"{self.image_field} of {self.dataset} is {image.dtype}; uint8 is needed"
        )
      caption = self.template.format(caption)
      return {**example, **label, "image": image, "caption": caption}

    return Mapped(source, fn)

  def class_names(self) -> tuple[str, ...]:
    """Names of the labels in `caption_field`; InputError if it holds none."""
    features = tfds.builder(self.dataset, self.data_dir).info.features
    names = getattr(features.get(self.caption_field), "names", None)
    if not names:
      raise InputError(
        f"{self.caption_field} of {self.dataset} is no class label; set"
        " data.source.caption_field"
      )
    return tuple(names)


@dataclasses.dataclass(frozen=True)
class ImageFolder:
  """A folder of images, in the layouts of `data.folders`.

  Attributes:
    caption_field: of metadata.jsonl, .csv or .parquet.
    validation_fraction: held out if there is no folder validation/.
  """

  directory: str
  validation_fraction: ranges.ProperFraction = 0.1
  caption_field: str = "text"

  def __post_init__(self) -> None:
    ranges.check(self)

  @property
  def _root(self) -> pathlib.Path:
    return copies.here(self.directory, "data.source.directory")

  def _splits(self) -> folders.Splits:
    found = folders.images_in(self.directory, "data.source.directory")
    return folders.split(self._root, found)

  def _of_split(self, splits: folders.Splits, split: str) -> list[pathlib.Path]:
    if "validation" in splits.by_split:
      return splits.by_split[split]
    found = splits.by_split["train"]
    return [found[i] for i in held_out(len(found), split, self.validation_fraction)]

  def paths(self, split: str) -> list[pathlib.Path]:
    """The image files of a split."""
    return self._of_split(self._splits(), split)

  def examples(self, split: str) -> Sequence[Example]:
    splits = self._splits()
    paths = self._of_split(splits, split)
    captions = folders.captions(self._root, paths, splits.tops, self.caption_field)
    pairs = [(path, caption) for path in paths for caption in captions[path]]
    numbers = {name: i for i, name in enumerate(self._names(splits))}

    def fn(pair):
      path, caption = pair
      example = {"image": image_files.open_image(path), "caption": caption}
      if path.parent not in splits.tops:
        example["label"] = numbers[path.parent.name]
      return example

    return Mapped(pairs, fn)

  def _names(self, splits: folders.Splits) -> list[str]:
    paths = [path for found in splits.by_split.values() for path in found]
    return sorted(
      {path.parent.name for path in paths if path.parent not in splits.tops}
    )

  def class_names(self) -> tuple[str, ...]:
    """Folders that hold images, in order; InputError for images that lie in none."""
    splits = self._splits()
    paths = [path for found in splits.by_split.values() for path in found]
    if loose := [path for path in paths if path.parent in splits.tops]:
      raise InputError(
        f"classes are folders, and {len(loose)} of {len(paths)} images in"
        f" {self._root} lie in none, the first is {loose[0]}; move them"
      )
    return tuple(self._names(splits))


@dataclasses.dataclass(frozen=True)
class Npz:
  """Arrays in one .npz file: images uint8 [N, H, W, C] and captions [N]."""

  path: str
  image_key: str = "image"
  caption_key: str = "caption"
  validation_fraction: ranges.ProperFraction = 0.1

  def __post_init__(self) -> None:
    ranges.check(self)

  def examples(self, split: str) -> Sequence[Example]:
    path = copies.here(self.path, "data.source.path")
    keys = self.image_key, self.caption_key
    try:
      with zipfile.ZipFile(path):  # np.load would accept other formats
        pass
      with np.load(path, allow_pickle=False) as file:
        names = file.files
        arrays = [np.asarray(file[key]) for key in keys if key in names]
    except Exception as error:  # numpy and zipfile raise many kinds
      raise InputError(
        f"cannot read {path}: {first_line(error)}; an .npz file without pickled"
        " objects is needed"
      ) from None
    for key in keys:
      if key not in names:
        raise unknown(f"array (of {path})", key, names)
    pixels, captions = arrays
    is_uint8 = pixels.dtype == np.uint8 and pixels.ndim == 4 and 0 not in pixels.shape
    if not is_uint8 or pixels.shape[-1] not in (1, 3):
      raise InputError(
        f"{path}: {self.image_key} is {pixels.dtype} {list(pixels.shape)}; uint8 [N, H,"
        " W, C] with C of 1 or 3 is needed"
      )
    if captions.dtype.kind not in "US" or captions.shape != pixels.shape[:1]:
      raise InputError(
        f"{path}: {self.caption_key} is {captions.dtype} {list(captions.shape)}; one"
        f" string for each of the {len(pixels)} images is needed"
      )

    def fn(i):
      caption = files.text(captions[i], f"{path}, caption {i}")
      return {"image": pixels[i], "caption": caption}

    chosen = held_out(len(pixels), split, self.validation_fraction)
    return Mapped(range(len(pixels)), fn, chosen)
