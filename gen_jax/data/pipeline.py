"""From sources to batches: a batch is a pure function of (seed, step).

    examples  -> shuffled again each epoch -> transformed with a generator of their own
              -> batch(step): global rows [step * B, (step + 1) * B)

There is no iterator state: resuming, replaying and changing the number of hosts come
for free. Each host computes only its own rows; threads prepare the next batches while
the accelerator works. Built on `grain.MapDataset`, whose i-th element depends on (seed,
i) alone.
"""

import bisect
import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gen_jax.data import cache, image_files, sources, tokenizers
from gen_jax.data import rows as row_batches
from gen_jax.errors import InputError

if TYPE_CHECKING:  # a tenth of a second, which sampling does not need
  import grain

# Decoding and resizing of images run in parallel, the rest of Python does not.
_THREADS = min(max(os.cpu_count() or 1, 2), 8)

Features = row_batches.Features
Transform = Callable[[object, np.random.Generator], Features]


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
  """Examples, what to make of them, and how many go into a batch.

  Attributes:
    examples: random access.
    transform: (example, generator) -> arrays without a batch axis; 'weights' says what
      counts.
    batch_size: global batch size B.
    seed: of shuffling and of the generators.
    readers: threads of `stream` that make single examples, which are then put into
      batches; 0: a few threads that make whole batches. It changes no batch.
  """

  examples: Sequence
  transform: Transform
  batch_size: int
  seed: int = 0
  readers: int = 0

  def _local(self, rows: slice) -> "grain.MapDataset":
    num = rows.stop - rows.start
    if self.batch_size % num or rows.start % num:
      raise InputError(
        f"rows {rows.start}..{rows.stop} of a batch of {self.batch_size}: hosts must"
        " share the batch evenly"
      )
    dataset = self._shuffled(self.examples).random_map(self.transform).batch(num)
    return dataset[rows.start // num :: self.batch_size // num]

  def _shuffled(self, examples: Sequence) -> "grain.MapDataset":
    import grain

    # Without end, for all purposes; grain's own endless repeat overflows when sliced.
    epochs = max(1, 2**48 // len(examples))
    return grain.MapDataset.source(examples).seed(self.seed).shuffle().repeat(epochs)

  def indices(self, step: int) -> list[int]:
    """Which of `examples` are in the step's global batch, row by row."""
    dataset = self._shuffled(range(len(self.examples)))
    rows = range(step * self.batch_size, (step + 1) * self.batch_size)
    return [int(dataset[row]) for row in rows]

  def batch(self, step: int, rows: slice | None = None) -> Features:
    """Rows of the step's global batch (default: all), each array [rows, ...]."""
    return self._local(rows or slice(0, self.batch_size))[step]

  def stream(self, start: int, rows: slice | None = None) -> Iterator[Features]:
    """batch(start), batch(start + 1), ... prepared ahead by threads."""
    import grain

    rows = rows or slice(0, self.batch_size)
    if self.readers:
      return self._by_example(start, rows)
    dataset = self._local(rows)[start:]
    options = grain.ReadOptions(_THREADS, prefetch_buffer_size=2 * _THREADS)
    return iter(dataset.to_iter_dataset(options))

  def _by_example(self, start: int, rows: slice) -> Iterator[Features]:
    """`stream`, at most two batches of examples ahead of what was asked for."""
    import grain

    num = rows.stop - rows.start
    made = self._shuffled(self.examples).random_map(self.transform)

    def example(number: int) -> Features:
      step, row = divmod(int(number), num)
      return made[step * self.batch_size + rows.start + row]

    ahead = max(2 * num, self.readers)
    options = grain.ReadOptions(self.readers, prefetch_buffer_size=ahead)
    numbers = grain.MapDataset.range(start * num, 2**48).map(example)
    return iter(numbers.to_iter_dataset(options).batch(num))

  def once(self, rows: slice | None = None, max_batches: int | None = None):
    """Yields one ordered pass; the last batch is padded with zero weights."""
    rows = rows or slice(0, self.batch_size)
    num_batches = -(-len(self.examples) // self.batch_size)

    def feature(index: int) -> Features:
      present = index < len(self.examples)
      example = self.examples[index if present else 0]
      made = self.transform(example, np.random.default_rng((self.seed, index)))
      return made if present else {**made, "weights": np.zeros_like(made["weights"])}

    with concurrent.futures.ThreadPoolExecutor(self.readers or 1) as pool:
      for step in range(min(num_batches, max_batches or num_batches)):
        first = step * self.batch_size
        indices = range(first + rows.start, first + rows.stop)
        features = list((pool.map if self.readers else map)(feature, indices))
        yield {k: np.stack([f[k] for f in features]) for k in features[0]}


class Remembered(sources.Mapped):
  """Decoded examples, kept in memory until their arrays fill `most_bytes`.

  A small data set is decoded once, not again in each epoch.
  """

  def __init__(self, source: Sequence, most_bytes: int = 2**28):
    super().__init__(source, dict)
    self._left, self._kept = most_bytes, {}

  def __getitem__(self, i: int) -> Any:
    found = self._kept.get(int(i))
    if found is None:
      found = super().__getitem__(i)
      size = sum(getattr(value, "nbytes", 64) for value in found.values())
      if size <= self._left:  # threads that meet here keep a few more
        self._left -= size
        self._kept[int(i)] = found
    return found


class Piece(NamedTuple):
  """A whole document or conversation, or a part of one.

  Attributes:
    ids: int [n].
    counts: bool [n], which of them are to be predicted; None is all.
  """

  ids: Sequence[int] | np.ndarray
  counts: Sequence[bool] | np.ndarray | None = None


def packed_row(pieces: Sequence[Piece], length: int) -> Features:
  """Pieces side by side in one row, none of which sees another.

  A piece of n tokens takes n - 1 places: its last token is a target alone. What does
  not fit is cut off.

  Returns:
    inputs, targets int32 [T]; weights float32 [T], 0 for padding and where nothing is
    to be predicted; segments int32 [T], the pieces numbered from 1, 0 for padding;
    positions int32 [T], counted from the piece's start.
  """
  names = ("inputs", "targets", "segments", "positions")
  row = {name: np.zeros(length, np.int32) for name in names}
  row["weights"] = np.zeros(length, np.float32)
  start = 0
  for number, piece in enumerate(pieces, 1):
    ids = np.asarray(piece.ids)[: length - start + 1].astype(np.int32)
    if len(ids) < 2:
      continue
    place = slice(start, start + len(ids) - 1)
    row["inputs"][place], row["targets"][place] = ids[:-1], ids[1:]
    row["segments"][place] = number
    row["positions"][place] = np.arange(len(ids) - 1)
    counts = True if piece.counts is None else piece.counts[1 : len(ids)]
    row["weights"][place] = counts
    start = place.stop
  return row


def pack(sizes: Sequence[int], room: int) -> list[list[int]]:
  """Which items share a row: each goes where it leaves the least room, longest first.

  >>> pack([3, 5, 2, 4, 9], 6)
  [[4], [1], [3, 2], [0]]

  Args:
    sizes: places that each item takes; more than `room` counts as `room`.

  Returns:
    Indices of the items of every row.
  """
  rows: list[list[int]] = []
  open_rows: list[tuple[int, int]] = []  # (room left, row), rising
  for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
    size = min(sizes[i], room)
    at = bisect.bisect_left(open_rows, (size, 0))
    if at == len(open_rows):
      left, row = room, len(rows)
      rows.append([])
    else:
      left, row = open_rows.pop(at)
    rows[row].append(i)
    bisect.insort(open_rows, (left - size, row))
  return rows


def turns(stream: cache.Tokens, *, length: int, batch_size: int, seed: int) -> Pipeline:
  """Conversations, packed into rows of `length`; only what answers is a target.

  Of a conversation that is longer than a row, the beginning is used.

  Raises:
    InputError: no answer begins early enough.
  """
  pieces = [Piece(stream.ids[at], stream.is_answer[at]) for at in stream.pieces()]
  pieces = [piece for piece in pieces if np.any(piece.counts[1 : length + 1])]
  if not pieces:
    raise InputError(
      f"no conversation has an answer within data.length={length} tokens; raise it"
    )
  rows = pack([len(piece.ids) - 1 for piece in pieces], length)

  def transform(row: list[int], generator: np.random.Generator) -> Features:
    del generator
    return packed_row([pieces[i] for i in row], length)

  return Pipeline(rows, transform, batch_size, seed)


def text(
  stream: cache.Tokens,
  *,
  length: int,
  batch_size: int,
  seed: int,
  train: bool,
  rows: row_batches.Rows = row_batches.windows,
) -> Pipeline:
  """Windows of text: each token but the first is a target once.

  For training every window is moved on by less than its length, at random: other cuts
  in every epoch.

  Args:
    rows: what becomes of windows.

  Raises:
    InputError: a text shorter than one window.
  """
  num = len(stream.ids)
  if num < length + 1:
    raise InputError(
      f"the {'training' if train else 'validation'} text has {num} tokens,"
      f" fewer than one window of data.length={length} + 1; give more text, a shorter"
      " length or another validation_fraction"
    )

  def transform(start: int, generator: np.random.Generator) -> Features:
    if train:
      room = min(max(num - start - length - 1, 0), length - 1)
      start = start + int(generator.integers(room + 1))
    window = stream.part(int(start), int(start) + length + 1)
    return row_batches.one(rows, window, length, generator)

  return Pipeline(range(0, num - 1, length), transform, batch_size, seed)


def caption_ids(caption: str, tokenizer: tokenizers.Tokenizer) -> list[int]:
  """Tokens of a caption, eos at its end; before it what opens texts, but not eos.

  Raises:
    InputError: the tokenizer has no eos.
  """
  tokenizers.check_eos(tokenizer, "captions need")
  opening = () if tokenizer.shares_marks else tokenizer.opening
  return [*opening, *tokenizer.encode(caption), tokenizer.eos]


def pad_caption(
  caption: str, tokenizer: tokenizers.Tokenizer, length: int
) -> tuple[np.ndarray, np.ndarray]:
  """Tokens int32 [S] ending in eos (cut before it if too long), and mask bool [S]."""
  ids = caption_ids(caption, tokenizer)
  ids = [*ids[: length - 1], tokenizer.eos] if len(ids) > length else ids
  pad = tokenizer.eos if tokenizer.pad is None else tokenizer.pad
  tokens = np.full(length, pad, np.int32)
  tokens[: len(ids)] = ids
  return tokens, np.arange(length) < len(ids)


class Prompts(NamedTuple):
  """What batches have of the captions and labels of examples.

  Attributes:
    kinds: of 'caption' and 'label'.
    tokenizer, length: of captions, where they are read.
  """

  kinds: tuple[str, ...]
  tokenizer: tokenizers.Tokenizer | None = None
  length: int | None = None

  def of(self, example) -> Features:
    """caption int32 [S] and caption_mask bool [S]; label int32 []."""
    found = {}
    if "caption" in self.kinds:
      pair = pad_caption(example["caption"], self.tokenizer, self.length)
      found["caption"], found["caption_mask"] = pair
    if "label" in self.kinds:
      found["label"] = np.int32(example["label"])
    return found


def images(
  examples: Sequence,
  prompts: Prompts,
  *,
  image_size: int,
  channels: int,
  batch_size: int,
  seed: int,
  flip: bool = False,
  image_keys: Sequence[str] = ("image",),
  readers: int = 0,
) -> Pipeline:
  """Images in [-1, 1] and their prompts, weighted by their loss_weight if any.

  Args:
    readers: see `Pipeline`.
    image_keys: names of an example's images; they are mirrored together.

  Raises:
    InputError: no examples.
  """
  if len(examples) == 0:
    raise InputError("the data set has no images; look at its source and split")

  def transform(example, generator: np.random.Generator) -> Features:
    mirrored = flip and generator.random() < 0.5
    features = {}
    for name in image_keys:
      pixels = image_files.to_square(example[name], image_size, channels)
      pixels = pixels[:, ::-1] if mirrored else pixels
      features[name] = pixels.astype(np.float32) / 127.5 - 1.0
    weight = np.float32(example.get("loss_weight", 1.0))
    return {**features, **prompts.of(example), "weights": weight}

  return Pipeline(examples, transform, batch_size, seed, readers)


def latents(
  examples: Sequence,
  prompts: Prompts,
  *,
  shape: tuple[int, ...],
  batch_size: int,
  seed: int,
  flip: bool = False,
  readers: int = 0,
) -> Pipeline:
  """Codes of images and their prompts.

  Args:
    readers: see `Pipeline`.
    shape: [h, w, 2 Z] of a code's moments.
    flip: take the code of the mirrored image half of the time.

  Raises:
    InputError: no examples, codes of another shape, or none of mirrored images.
  """
  if not len(examples):
    raise InputError("the latent cache has no codes of this split")
  found = examples[0]["codes"].shape
  if found[1:] != tuple(shape):
    raise InputError(
      f"the latent cache has codes {list(found[1:])}, the config wants {list(shape)}:"
      " set data.latent_size and data.latent_channels"
    )
  if flip and found[0] < 2:
    raise InputError(
      "data.flip=True needs the codes of mirrored images: gen-jax encode --flip"
    )

  def transform(example, generator: np.random.Generator) -> Features:
    mirrored = int(flip and generator.random() < 0.5)
    latent = example["codes"][mirrored].astype(np.float32)
    weight = np.ones((), np.float32)
    return {"latent": latent, **prompts.of(example), "weights": weight}

  return Pipeline(examples, transform, batch_size, seed, readers)
