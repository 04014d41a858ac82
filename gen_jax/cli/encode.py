"""`gen-jax encode`: an autoencoder's latents, measured and kept on disk."""

import contextlib
import itertools
import pathlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from gen_jax import experiment as experiments
from gen_jax import tree
from gen_jax.cli import config_args, trained, workdir
from gen_jax.data import datasets, latents, pipeline
from gen_jax.tasks import autoencoder
from gen_jax.types import InputError

SPLITS = ("train", "validation")
BATCH_SIZE = 32


def add_arguments(parser) -> None:
  """See `gen-jax encode --help`."""
  trained.add_arguments(parser)
  parser.add_argument(
    "--to", metavar="DIR", help="new folder for the codes of all data"
  )
  parser.add_argument(
    "--flip", action="store_true", help="encode each picture mirrored as well"
  )
  parser.epilog = (
    "Measures mean and standard deviation of each channel over the training split and\n"
    "notes them in WORKDIR/latents.json: diffusion on the latents needs them. Another\n"
    "data set is named as in `gen-jax train`: --config.data.source=image_folder\n"
    "--config.data.source.directory=DIR"
  )


def run(args) -> dict:
  """Measures, and with --to writes the codes; nothing is left of what breaks off."""
  directory = pathlib.Path(args.workdir)
  for key, _ in args.overrides:
    if key.split(".")[0] not in ("data", "mesh"):
      raise InputError(
        f"config key {key!r} belongs to the trained model; encode can change data and"
        " mesh"
      )
  config = config_args.apply(workdir.read_config(directory), args.overrides)
  target = pathlib.Path(args.to) if args.to else None
  if target and target.exists():
    raise InputError(f"--to {target} is there already; take another folder")
  experiment = experiments.make(config, None)
  if not isinstance(experiment.task, autoencoder.Autoencode):
    raise InputError(f"{directory} holds no autoencoder; train one (configs/vae)")
  opened = trained.open_weights(experiment, directory, args.checkpoint, args.weights)
  weights = opened.weights["autoencoder"]
  found = {split: experiment.data.examples(split) for split in SPLITS}
  encoder = _Encoder(experiment, weights, args.flip)
  statistics = _Statistics()
  notes = {
    "sha256": tree.sha256(weights),
    "step": opened.step,
    "weights": opened.kind,
    "data": config["data"]["source"],
  }
  if target:
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
      for split in SPLITS:
        codes = encoder.codes(found[split])
        codes = statistics.watching(codes) if split == "train" else codes
        latents.write(partial / f"{split}.array_record", codes)
      notes = {**notes, **statistics.found()}
      workdir.write_json(partial / latents.NAME, notes)
      partial.rename(target)
    except BaseException:
      shutil.rmtree(partial, ignore_errors=True)
      raise
  else:
    for _ in statistics.watching(encoder.codes(found["train"])):
      pass
    notes = {**notes, **statistics.found()}
  workdir.write_json(directory / latents.NAME, notes)
  for name in ("mean", "std"):
    print(f"{name} of each channel: {', '.join(f'{v:.4f}' for v in notes[name])}")
  print(
    f"over {notes['num_images']} pictures, by the {opened.kind} weights of step"
    f" {opened.step}: {directory / latents.NAME}"
    + (f"; codes in {target}" if target else "")
  )
  return {"workdir": str(directory), "to": args.to, **notes}


class _Encoder:
  """Pictures to the moments of their codes, in batches of one size."""

  def __init__(self, experiment, weights, flip: bool):
    self.data: datasets.ImageData = experiment.data
    self.flip, self.weights = flip, weights
    model = experiment.task.autoencoder

    def encode(weights, x):
      moments = model.apply({"params": weights}, x, method="encode")
      return jax.numpy.concatenate(moments, -1)

    self._encode = jax.jit(encode)

  def codes(self, examples: Sequence) -> Iterator[tuple[np.ndarray, str]]:
    """Codes [F, h, w, 2 Z] and caption of each example."""
    sides = (1, -1) if self.flip else (1,)
    indices = iter(range(len(examples)))
    while some := list(itertools.islice(indices, BATCH_SIZE)):
      batch = [examples[i] for i in some]
      size, channels = self.data.image_size, self.data.channels
      pixels = [pipeline.to_square(e["image"], size, channels) for e in batch]
      pixels += pixels[:1] * (BATCH_SIZE - len(batch))
      x = np.stack(pixels).astype(np.float32) / 127.5 - 1.0
      found = [np.asarray(self._encode(self.weights, x[:, :, ::s])) for s in sides]
      if not all(np.isfinite(f).all() for f in found):
        raise InputError("the autoencoder gives codes that are not finite; train anew")
      for i, example in enumerate(batch):
        yield np.stack([f[i] for f in found]), example["caption"]
      with contextlib.suppress(OSError):
        done = some[-1] + 1
        if sys.stderr.isatty():
          print(f"\r{done} of {len(examples)} encoded", end="", file=sys.stderr)


class _Statistics:
  """Mean and variance of draws from posteriors, in float64."""

  def __init__(self):
    self.num_images, self.count, self.sums = 0, 0, np.zeros((2, 1))

  def watching(self, codes) -> Iterator[tuple[np.ndarray, str]]:
    """Passes codes on."""
    for moments, caption in codes:
      mean, std = np.split(moments.astype(np.float64), 2, -1)
      flat = mean.reshape(-1, mean.shape[-1])
      second = (mean**2 + std**2).reshape(flat.shape)
      self.sums = self.sums + np.stack([flat.sum(0), second.sum(0)])
      self.count, self.num_images = self.count + len(flat), self.num_images + 1
      yield moments, caption

  def found(self) -> dict[str, Any]:
    """mean and std per channel."""
    if not self.count:
      raise InputError("the data set has no images; look at its source and split")
    mean, second = self.sums / self.count
    std = np.sqrt(np.maximum(second - mean**2, 1e-12))
    return {
      "mean": mean.tolist(), "std": std.tolist(), "num_images": self.num_images
    }  # fmt: skip
