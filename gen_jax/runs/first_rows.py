"""The first rows that a run learns from, as its model sees them."""

import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from gen_jax import experiment as experiments
from gen_jax.data import batches, pipeline
from gen_jax.inference import sheets
from gen_jax.system import files

_MOST = 8  # rows
_SHOWN = 300  # characters of a row of text on the terminal
_SEEN = ("inputs", "image", "latent")


def show(
  experiment: experiments.Experiment,
  examples: pipeline.Pipeline,
  directory: pathlib.Path,
) -> list[str]:
  """Lines that say it in short; all is in samples/first_rows.txt, and .png of images.

  Rows of step 0 are flipped, cut and masked as in training, and at most eight.
  """
  num = math.gcd(examples.batch_size, _MOST)
  batch = examples.batch(0, slice(0, num))
  if not any(name in batch for name in _SEEN):
    return []
  rows = [{name: values[i] for name, values in batch.items()} for i in range(num)]
  told = [_about(experiment, row) for row in rows]
  folder = directory / "samples"
  folder.mkdir(exist_ok=True)
  where = folder / "first_rows.txt"
  files.write(where, "\n\n".join(_numbered(told)) + "\n")
  if found := batches.images(batch):
    where = folder / "first_rows.png"
    sheets.save_captioned(where, *_sheet(found, told))
  lines = [f"the first rows as the model sees them ({where}):"]
  for text in told[: 2 if "inputs" in batch else 4]:
    text = text.replace("\n", " ")
    lines.append(f"  {text[:_SHOWN]}{' ...' if len(text) > _SHOWN else ''}")
  return lines


def _about(experiment, row: Mapping[str, np.ndarray]) -> str:
  """A row of text; or the caption, label and range of values of one of images."""
  if "inputs" in row:
    return batches.marked(row, experiment.tokenizer)
  words = []
  if "caption" in row:
    ids, counts = row["caption"], row["caption_mask"]
    words.append(repr(experiment.tokenizer.decode(ids[counts].tolist())))
  if "label" in row:
    label = int(row["label"])
    names = experiment.class_names
    words.append(f"class {label}" + (f", {names[label]}" if names else ""))
  for name in ("before", *_SEEN):
    if name in row:
      low, high = float(row[name].min()), float(row[name].max())
      words.append(f"{name} {list(row[name].shape)} from {low:.3g} to {high:.3g}")
  if row["weights"] != 1:
    words.append(f"weight {float(row['weights']):.3g}")
  return "; ".join(words)


def _numbered(told: Sequence[str]) -> Iterator[str]:
  for number, text in enumerate(told, 1):
    yield f"row {number}\n{text}"


def _sheet(
  found: Sequence[tuple[str, np.ndarray]], told: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
  """All images, those of a row next to each other, and a caption for each."""
  pixels = np.stack([images for _, images in found], axis=1)
  captions = [
    f"{name}: {text}" if len(found) > 1 else text for text in told for name, _ in found
  ]
  return pixels.reshape(-1, *pixels.shape[2:]), captions
