"""Data sets ready to train on: a source, a tokenizer and the shape of a batch.

Both kinds offer the same: what to train a tokenizer on, what a batch looks like, and a
`pipeline.Pipeline` per split.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable
from typing import Protocol

import jax
import numpy as np

from gen_jax.data import cache, pipeline, sources, tokenizers
from gen_jax.types import Batch, InputError

TrainTokenizer = Callable[[Iterable[str]], tokenizers.Tokenizer]


class Data(Protocol):
  """What the trainer needs to know of data."""

  batch_size: int
  tokenizer: TrainTokenizer

  @property
  def unit(self) -> str:
    """What throughput counts."""
    ...

  @property
  def items_per_step(self) -> int:
    """Units in one global batch."""
    ...

  def texts(self) -> Iterable[str]:
    """The training texts, for the tokenizer."""
    ...

  def abstract_batch(self) -> Batch:
    """Shapes and dtypes of a global batch, without reading anything."""
    ...

  def pipeline(
    self, split: str, tokenizer: tokenizers.Tokenizer, seed: int
  ) -> pipeline.Pipeline:
    """Batches of 'train' or 'validation'."""
    ...


def _positive(**values: int) -> None:
  for name, value in values.items():
    if value < 1:
      raise InputError(f"data.{name}={value} must be at least 1")


@dataclasses.dataclass(frozen=True)
class TextData:
  """Windows of `length` tokens cut from one long stream of documents."""

  source: sources.TextSource
  tokenizer: TrainTokenizer
  length: int
  batch_size: int

  unit = "tokens"

  def __post_init__(self):
    _positive(length=self.length, batch_size=self.batch_size)

  @property
  def items_per_step(self) -> int:
    return self.batch_size * self.length

  def texts(self) -> Iterable[str]:
    return self.source.documents("train")

  def abstract_batch(self) -> Batch:
    shape = (self.batch_size, self.length)
    ints = jax.ShapeDtypeStruct(shape, np.int32)
    weights = jax.ShapeDtypeStruct(shape, np.float32)
    return {"inputs": ints, "targets": ints, "weights": weights}

  def pipeline(self, split, tokenizer, seed):
    return pipeline.text(
      cache.stream(self.source, split, tokenizer),
      length=self.length,
      batch_size=self.batch_size,
      seed=seed,
      train=split == "train",
    )


@dataclasses.dataclass(frozen=True)
class PackedText(TextData):
  """`TextData` that knows its documents: attention and positions restart at each.

  Batches also have segments and positions, see `pipeline.packed_window`.
  """

  def abstract_batch(self) -> Batch:
    batch = super().abstract_batch()
    return {**batch, "segments": batch["inputs"], "positions": batch["inputs"]}

  def encode(self) -> cache.Encode:
    """How the text of a document becomes ids."""
    return cache.plain

  def pipeline(self, split, tokenizer, seed):
    shared = tokenizer.bos is not None and tokenizer.bos == tokenizer.eos
    return pipeline.text(
      cache.stream(self.source, split, tokenizer, self.encode()),
      length=self.length,
      batch_size=self.batch_size,
      seed=seed,
      train=split == "train",
      cut=functools.partial(pipeline.packed_window, shared_marks=shared),
    )


@dataclasses.dataclass(frozen=True)
class ImageData:
  """Pictures [image_size, image_size, channels] in [-1, 1] with captions."""

  source: sources.ImageSource
  tokenizer: TrainTokenizer
  image_size: int
  channels: int
  caption_length: int
  batch_size: int
  flip: bool = False

  unit = "images"

  def __post_init__(self):
    _positive(image_size=self.image_size, caption_length=self.caption_length)
    _positive(batch_size=self.batch_size)
    if self.channels not in (1, 3):
      raise InputError(f"data.channels={self.channels} must be 1 (grey) or 3 (colour)")

  @property
  def items_per_step(self) -> int:
    return self.batch_size

  def texts(self) -> Iterable[str]:
    return (example["caption"] for example in self.source.examples("train"))

  def abstract_batch(self) -> Batch:
    n, side = self.batch_size, self.image_size
    shape = jax.ShapeDtypeStruct
    return {
      "image": shape((n, side, side, self.channels), np.float32),
      "caption": shape((n, self.caption_length), np.int32),
      "caption_mask": shape((n, self.caption_length), np.bool_),
      "weights": shape((n,), np.float32),
    }

  def pipeline(self, split, tokenizer, seed):
    return pipeline.captioned_images(
      self.source.examples(split),
      tokenizer,
      image_size=self.image_size,
      channels=self.channels,
      caption_length=self.caption_length,
      batch_size=self.batch_size,
      seed=seed,
      flip=self.flip and split == "train",
    )


def tokenizer_for(data: Data, workdir: pathlib.Path) -> tokenizers.Tokenizer:
  """The workdir's tokenizer: read from its folder, or made and written there."""
  folder = workdir / "tokenizer"
  if folder.exists():
    return tokenizers.load(folder)
  tokenizer = data.tokenizer(data.texts())
  partial = workdir / "tokenizer.partial"
  tokenizer.save(partial)
  partial.replace(folder)
  return tokenizer
