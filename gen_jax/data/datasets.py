"""Data sets ready to train on: a source, a tokenizer and the shape of a batch.

Both kinds offer the same: what to train a tokenizer on, what a batch looks like, and a
`pipeline.Pipeline` per split.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from gen_jax import ranges
from gen_jax.data import (
  cache,
  chat,
  conversations,
  image_files,
  infill,
  latents,
  pipeline,
  rows,
  sources,
  tokenizers,
)
from gen_jax.system import files
from gen_jax.types import Batch, InputError

TrainTokenizer = Callable[[Iterable[str]], tokenizers.Tokenizer]


class Data(Protocol):
  """What the trainer needs to know of data; data sets inherit what is usual."""

  batch_size: ranges.Size
  tokenizer: TrainTokenizer | None
  reads: str  # the method of its source: 'documents', 'conversations' or 'examples'
  template: chat.Template | None = None  # goes around messages
  caption_length: int | None = None  # tokens of a caption; None: it has none
  questions: Callable[..., "list[Question]"] | None = None  # see `Instructions`
  unit: str  # what throughput counts

  @property
  def items_per_step(self) -> int:
    """Units in one global batch."""
    return self.batch_size

  def texts(self) -> Iterable[str]:
    """The training texts, for the tokenizer."""

  def remark(self) -> str | None:
    """What is worth a line before training; reads the data."""
    return None

  def abstract_batch(self) -> Batch:
    """Shapes and dtypes of a global batch, without reading anything."""

  def giving(self, prompts: tuple[str, ...]) -> "Data":
    """The same data, with these of 'caption' and 'label' in its batches."""
    del prompts
    return self

  def pipeline(
    self, split: str, tokenizer: tokenizers.Tokenizer | None, seed: int
  ) -> pipeline.Pipeline:
    """Batches of 'train' or 'validation'."""


@dataclasses.dataclass(frozen=True)
class TextData(Data):
  """Windows of `length` tokens cut from one long stream of documents."""

  source: sources.TextSource
  tokenizer: TrainTokenizer
  length: ranges.Size
  batch_size: ranges.Size

  unit, reads = "tokens", "documents"

  def __post_init__(self) -> None:
    ranges.check(self)

  @property
  def items_per_step(self) -> int:
    return self.batch_size * self.length

  def texts(self) -> Iterable[str]:
    return cache.texts(self.source, "train")

  def abstract_batch(self) -> Batch:
    shape = (self.batch_size, self.length)
    ints = jax.ShapeDtypeStruct(shape, np.int32)
    weights = jax.ShapeDtypeStruct(shape, np.float32)
    return {"inputs": ints, "targets": ints, "weights": weights}

  def rows(self, tokenizer: tokenizers.Tokenizer) -> rows.Rows:
    """What becomes of the windows of a batch."""
    del tokenizer
    return rows.windows

  def pipeline(self, split, tokenizer, seed):
    how = {"length": self.length, "batch_size": self.batch_size, "seed": seed}
    how["rows"] = self.rows(tokenizer)
    if "feed" in sources.gives(self.source):
      return self.source.feed(split, tokenizer, **how)
    stream = cache.tokens(self.source, split, tokenizer)
    return pipeline.text(stream, train=split == "train", **how)


@dataclasses.dataclass(frozen=True)
class PackedText(TextData):
  """`TextData` that knows its documents: attention and positions restart at each.

  Batches also have segments and positions, see `rows.packed`.
  """

  def abstract_batch(self) -> Batch:
    batch = super().abstract_batch()
    return {**batch, "segments": batch["inputs"], "positions": batch["inputs"]}

  def rows(self, tokenizer: tokenizers.Tokenizer) -> rows.Rows:
    """What becomes of the windows of a batch."""
    return functools.partial(rows.packed, shared_marks=tokenizer.shares_marks)


class Question(NamedTuple):
  """Tokens of a prompt, and the answer that is wanted."""

  prompt: list[int]
  answer: str


@dataclasses.dataclass(frozen=True)
class Infill(PackedText):
  """`PackedText` in which parts are filled in from both sides, see `data.infill`."""

  rate: ranges.Fraction = 0.5
  marks: tuple[str, str, str] = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")

  @property
  def how(self) -> infill.Infill:
    """How text is rearranged."""
    return infill.Infill(self.rate, self.marks)

  def rows(self, tokenizer: tokenizers.Tokenizer) -> rows.Rows:
    """What becomes of the windows of a batch."""
    tokenizers.check_eos(tokenizer, "data.name=infill needs")
    return rows.each(functools.partial(self.how.row, tokenizer=tokenizer))

  def questions(
    self, split: str, tokenizer: tokenizers.Tokenizer, num: int, room: int
  ) -> list[Question]:
    """Lines to fill in, three quarters of the prompt before them, if need be."""
    room -= len(self.how.prompt([], [], tokenizer))
    questions = []
    if room <= 0:
      return questions
    for gap in infill.gaps(self.source.documents(split), num):
      before, after = map(tokenizer.encode, (gap.before, gap.after))
      after = after[: max(room // 4, room - len(before))]
      before = before[max(len(before) + len(after) - room, 0) :]
      questions.append(Question(self.how.prompt(before, after, tokenizer), gap.line))
    return questions


@dataclasses.dataclass(frozen=True)
class Instructions(PackedText):
  """Conversations, several in a row of `length` tokens; the answers alone are learned.

  Attributes:
    template: put around the messages; None is the one that came with the tokenizer.
  """

  source: conversations.ConversationSource
  template: chat.Template | None = None

  reads = "conversations"

  def texts(self) -> Iterable[str]:
    found = self.source.conversations("train")
    return (message["content"] for messages in found for message in messages)

  def pipeline(self, split, tokenizer, seed):
    if self.template is not None:
      tokenizers.check_eos(tokenizer, "data.name=instructions needs")
    return pipeline.turns(
      cache.tokens_of_turns(self.source, split, tokenizer),
      length=self.length,
      batch_size=self.batch_size,
      seed=seed,
    )

  def questions(
    self, split: str, tokenizer: tokenizers.Tokenizer, num: int, room: int
  ) -> list[Question]:
    """The first conversations that are short enough, up to their last answers."""
    questions = []
    for messages in self.source.conversations(split):
      last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
      prompt = tokenizer.encode_chat(messages[:last], now=chat.TRAINING_DAY)
      if len(prompt) <= room:
        questions.append(Question(prompt, messages[last]["content"]))
      if len(questions) == num:
        break
    return questions


class _Prompted(Data):
  """What data of images and of latents share: captions or labels, and weights."""

  unit, image_keys = "images", ()

  def texts(self) -> Iterable[str]:
    if "captions" in sources.gives(self.source):
      return self.source.captions("train")
    return (example["caption"] for example in self.examples("train"))

  def _readers(self) -> int:
    """See `pipeline.Pipeline`."""
    return self.source.readers() if "readers" in sources.gives(self.source) else 0

  def giving(self, prompts: tuple[str, ...]) -> Data:
    return dataclasses.replace(self, prompts=prompts)

  def examples(self, split):
    """All examples of a split, by random access; the first is looked at."""
    found = getattr(self.source, self.reads)(split)
    self._check(found[0] if len(found) else None)
    return found

  def _check(self, example: Any) -> None:
    """Raises InputError for an example of users' own that lacks what is read."""
    if example is None:
      return
    has_names = isinstance(example, Mapping)
    captions = ("caption",) if self.caption_length else ()
    needed = dict.fromkeys((*self.image_keys, *captions, *self.prompts))
    if missing := [name for name in needed if not has_names or name not in example]:
      raise InputError(
        f"an example of {sources.called(self.source)} has no"
        f" {' and no '.join(missing)}: it must be a dict with {', '.join(needed)}"
      )
    if "caption" in needed:
      files.text(example["caption"], f"a caption of {sources.called(self.source)}")

  def _abstract(self, keys: Sequence[str], *shape: int) -> Batch:
    """Shapes of a batch with arrays `keys`, float32 [B, *shape], and prompts."""

    def struct(dtype, *shape):
      return jax.ShapeDtypeStruct((self.batch_size, *shape), dtype)

    found = {key: struct(np.float32, *shape) for key in keys}
    found["weights"] = struct(np.float32)
    if "caption" in self.prompts:
      found["caption"] = struct(np.int32, self.caption_length)
      found["caption_mask"] = struct(np.bool_, self.caption_length)
    if "label" in self.prompts:
      found["label"] = struct(np.int32)
    return found


@dataclasses.dataclass(frozen=True)
class ImageData(_Prompted):
  """Images [image_size, image_size, channels] in [-1, 1], with captions or labels.

  Attributes:
    tokenizer, caption_length: of captions; None where none are read.
    prompts: which of 'caption' and 'label' batches have.
  """

  source: sources.ImageSource
  image_size: ranges.Size
  channels: ranges.Size
  batch_size: ranges.Size
  tokenizer: TrainTokenizer | None = None
  caption_length: ranges.Size | None = None
  flip: bool = False
  prompts: tuple[str, ...] = ()

  reads, image_keys = "examples", ("image",)

  def __post_init__(self):
    ranges.check(self)
    if self.channels not in (1, 3):
      raise InputError(f"data.channels={self.channels} must be 1 (grey) or 3 (colour)")

  def remark(self) -> str | None:
    if "paths" in sources.gives(self.source):
      found = self.source.paths("train")
      sizes = [image_files.size(path) for path in image_files.evenly(found, 2000)]
    else:
      found = self.examples("train")
      some = image_files.evenly(range(len(found)), 16)
      sizes = [found[i]["image"].shape[1::-1] for i in some]
    return image_files.cut_off(sizes, len(found))

  def abstract_batch(self) -> Batch:
    side = self.image_size
    return self._abstract(self.image_keys, side, side, self.channels)

  def pipeline(self, split, tokenizer, seed):
    return pipeline.images(
      pipeline.Remembered(self.examples(split)),
      pipeline.Prompts(self.prompts, tokenizer, self.caption_length),
      image_keys=self.image_keys,
      image_size=self.image_size,
      channels=self.channels,
      batch_size=self.batch_size,
      seed=seed,
      flip=self.flip and split == "train",
      readers=self._readers(),
    )


@dataclasses.dataclass(frozen=True)
class EditData(ImageData):
  """Images before and after an edit; the caption is the instruction."""

  reads, image_keys = "edits", ("image", "before")


@dataclasses.dataclass(frozen=True)
class LatentData(_Prompted):
  """The codes of images, made once by `gen-jax encode`, with captions or labels.

  Attributes:
    tokenizer, caption_length, prompts: as of `ImageData`.
    image_size, channels: of the images that they stand for.
    latent_size, latent_channels: side and channels of a code.
    flip: whether mirrored images are shown as well; they must have been encoded.
  """

  source: latents.Latents
  image_size: ranges.Size
  channels: ranges.Size
  latent_size: ranges.Size
  latent_channels: ranges.Size
  batch_size: ranges.Size
  tokenizer: TrainTokenizer | None = None
  caption_length: ranges.Size | None = None
  flip: bool = False
  prompts: tuple[str, ...] = ()

  reads = "codes"

  def __post_init__(self) -> None:
    ranges.check(self)

  def abstract_batch(self) -> Batch:
    side = self.latent_size
    return self._abstract(("latent",), side, side, 2 * self.latent_channels)

  def pipeline(self, split, tokenizer, seed):
    return pipeline.latents(
      self.examples(split),
      pipeline.Prompts(self.prompts, tokenizer, self.caption_length),
      shape=self.abstract_batch()["latent"].shape[1:],
      batch_size=self.batch_size,
      seed=seed,
      flip=self.flip and split == "train",
      readers=self._readers(),
    )
