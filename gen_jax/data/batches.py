"""Batches of steps: made ahead; and example by example: which, from where, what."""

import concurrent.futures
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from gen_jax.data import pipeline, sources, tokenizers

_TEXTS = {"inputs": None, "caption": "caption_mask"}  # and what says which tokens count
_IMAGES = ("image", "before")
_T = TypeVar("_T")


def ahead(make: Callable[[], _T]) -> Iterator[_T]:
  """make(), make(), ...: a thread makes the next one while the caller uses the last.

  What a call raises is raised by the `next` that asks for its result.
  """
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    coming = [pool.submit(make)]
    while True:
      coming.append(pool.submit(make))
      yield coming.pop(0).result()  # no variable keeps it


def rows(
  tokenizer: tokenizers.Tokenizer | None, examples: pipeline.Pipeline, step: int
) -> list[dict[str, Any]]:
  """index, file (if it has one of its own), text and ranges of values of each row."""
  batch = examples.batch(step)
  found = []
  for row, index in enumerate(examples.indices(step)):
    features = {name: values[row] for name, values in batch.items()}
    about = {"index": index, "file": sources.file_of(examples.examples, index)}
    found.append({**about, **_glimpse(features, tokenizer)})
  return found


def _glimpse(features: Mapping[str, np.ndarray], tokenizer) -> dict[str, Any]:
  """text, and {name: [lowest, highest]} of what is no token."""
  glimpse: dict[str, Any] = {"text": "", "range": {}}
  for name, values in features.items():
    if name in _TEXTS:
      ids = values if _TEXTS[name] is None else values[features[_TEXTS[name]]]
      glimpse["text"] += tokenizer.decode(ids.tolist())
    elif values.ndim >= 3:
      glimpse["range"][name] = [float(values.min()), float(values.max())]
  return glimpse


def oddest(found: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
  """A row with values that are not finite, or with the largest, or the first."""

  def size(row):
    ends = [abs(end) for pair in row["range"].values() for end in pair]
    return max((math.inf if math.isnan(end) else end for end in ends), default=0.0)

  return max(found, key=size)


def line(row: Mapping[str, Any]) -> str:
  """A row of `rows` on one line."""
  words = [f"example {row['index']}"]
  words += [row["file"]] if row["file"] else []
  words += [f"{n} from {a:.4g} to {b:.4g}" for n, (a, b) in row["range"].items()]
  text = row["text"]
  words += [repr(text[:60] + "..." if len(text) > 60 else text)] if text else []
  return " ".join(words)


_NO_LOSS, _PART = "⟦{}⟧", "│"  # around what is not predicted; between tokens


def marked(features: Mapping[str, np.ndarray], tokenizer: tokenizers.Tokenizer) -> str:
  """A row of text as a model sees it: tokens parted by │, in ⟦⟧ those without loss.

  Each piece of a packed row begins on a line of its own; padding is counted.

  Args:
    features: inputs, targets and weights [T]; segments [T] of packed rows.
  """
  inputs, targets, weights = (features[n] for n in ("inputs", "targets", "weights"))
  names, size = {i: name for name, i in tokenizer.specials.items()}, len(inputs)
  is_text = np.arange(size) <= np.flatnonzero(weights).max(initial=-1)
  segments = features.get("segments", is_text)
  lines = []
  for number in dict.fromkeys(segments[segments > 0].tolist()):
    place = np.flatnonzero(segments == number)
    ids, counts = [inputs[place[0]], *targets[place]], [False, *(weights[place] > 0)]
    after = inputs[place[-1] + 1 :][:1]
    if not counts[-1] and np.array_equal(after, ids[-1:]):
      ids, counts = ids[:-1], counts[:-1]  # the next piece begins with it
    words = [_word(int(i), names, tokenizer) for i in ids]
    spans = itertools.groupby(zip(counts, words, strict=True), key=lambda pair: pair[0])
    lines.append("")
    for counted, span in spans:
      text = _PART.join(word for _, word in span)
      lines[-1] += _PART + text if counted else _NO_LOSS.format(text)
  if padding := int((segments == 0).sum()):
    lines.append(f"({padding} of {size} places are padding)")
  return "\n".join(lines)


def _word(token: int, names: Mapping[int, str], tokenizer) -> str:
  """A token on one line; a control token by its name."""
  piece = tokenizer.encoding.pieces[token]
  text = names.get(token) or piece.decode("utf-8", "backslashreplace")
  return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def sheet(batch: Mapping[str, np.ndarray]) -> np.ndarray | None:
  """The images of a batch, uint8 [rows, columns, H, W, C]; None of other data."""
  found = [pixels for _, pixels in images(batch)]
  if not found:
    return None
  flat = np.concatenate(found)
  columns = min(8, len(flat))
  flat = np.pad(flat, [(0, -len(flat) % columns), *[(0, 0)] * 3])
  return flat.reshape(-1, columns, *flat.shape[1:])


def images(batch: Mapping[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
  """Name and uint8 [B, H, W, C] of each kind of image in a batch."""
  return [
    (name, np.nan_to_num((batch[name] + 1.0) * 127.5).clip(0, 255).round().astype("u1"))
    for name in _IMAGES
    if name in batch
  ]
