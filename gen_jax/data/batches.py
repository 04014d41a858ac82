"""The batch of a training step, example by example: which, from where, a glimpse."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gen_jax.data import pipeline, sources, tokenizers

_TEXTS = {"inputs": None, "caption": "caption_mask"}  # and what says which tokens count
_IMAGES = ("image", "before")


def rows(
  tokenizer: tokenizers.Tokenizer, examples: pipeline.Pipeline, step: int
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


def sheet(batch: Mapping[str, np.ndarray]) -> np.ndarray | None:
  """The images of a batch, uint8 [rows, columns, H, W, C]; None of other data."""
  images = [batch[name] for name in _IMAGES if name in batch]
  if not images:
    return None
  flat = np.concatenate(images)
  columns = min(8, len(flat))
  flat = np.pad(flat, [(0, -len(flat) % columns), *[(0, 0)] * 3])
  pixels = np.nan_to_num((flat + 1.0) * 127.5).clip(0, 255).round().astype(np.uint8)
  return pixels.reshape(-1, columns, *pixels.shape[1:])
