"""`gen-jax evaluate` of pictures: how near they come to real ones, protocol included.

A figure holds for its protocol alone: how many pictures, against which, cut how, in
which features, drawn how. Two files whose protocols differ are not compared.
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import gen_jax
from gen_jax import build, fidelity, pictures
from gen_jax import experiment as experiments
from gen_jax.cli import sample, trained
from gen_jax.data import sources
from gen_jax.types import InputError, unknown

FLAGS = ("pictures", "folder", "features", "feature_weights", "split", "baseline")
FLAGS += ("against",)
_SHOWN = 8  # pictures on the sheet of nearest neighbours


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The flags of pictures."""
  group = parser.add_argument_group(
    "pictures, beside real ones (instead of the config's evaluators)"
  )
  group.add_argument(
    "--pictures",
    type=int,
    metavar="N",
    help="draw N for the captions of a split; an autoencoder: draw N of it again",
  )
  group.add_argument("--folder", help="take the pictures of a folder, and draw none")
  group.add_argument("--features", help="what to compare in; default pixels")
  group.add_argument("--feature_weights", metavar="FILE", help="of --features")
  group.add_argument(
    "--split", help="train (default), or validation (default of an autoencoder)"
  )
  group.add_argument("--seed", type=int, default=0, help="of what is drawn")
  group.add_argument(
    "--baseline",
    action="store_true",
    help="also the figures of random latents, decoded",
  )
  group.add_argument(
    "--against",
    metavar="FILE",
    help="another evaluation.json: refused if its protocol is not this one",
  )


class _Made(NamedTuple):
  """Pictures to measure: where from, their part of the protocol, and themselves."""

  origin: dict[str, Any]
  protocol: dict[str, Any]
  batches: Callable[[], Iterator[np.ndarray]]


def run(args, directory: pathlib.Path, config: dict) -> dict:
  """Measures; refuses what it must before anything is drawn."""
  if config["task"]["name"] == "language_model":
    raise InputError(f"--pictures is for pictures; {directory} holds a text model")
  if (args.folder is None) == (args.pictures is None):
    raise InputError("give one of --pictures N and --folder DIR")
  if args.pictures is not None and args.pictures < 2:
    raise InputError(f"--pictures {args.pictures} must be at least 2")
  is_codec = config["task"]["name"] == "autoencoder"
  if args.baseline and (args.folder or is_codec):
    raise InputError("--baseline is for --pictures of a model that draws")
  split = args.split or ("validation" if is_codec and not args.folder else "train")
  if split not in ("train", "validation"):
    raise unknown("--split", split, ("train", "validation"))
  block = {"name": args.features or "pixels"}
  if args.feature_weights:
    block["weights"] = args.feature_weights
  features = build.build("features", block, "--features")
  other = None if args.against is None else _read(args.against)
  opened, experiment = None, None
  if args.folder:
    experiment = experiments.make(config, None)
  else:
    opened = trained.open_trained(directory, config, args.checkpoint, args.weights)
    experiment = opened.experiment
  gallery = experiment.gallery(split)
  make = _in_folder if args.folder else _again if is_codec else _drawn
  made = make(args, opened, gallery)
  protocol = {
    **made.protocol,
    "features": features.name,
    "features_sha256": features.sha256,
    "split": split,
    "reference_num": len(gallery),
    "reference_sha256": gallery.sha256(),
    "resize": f"centre crop, bilinear, {gallery.size}x{gallery.size}",
    "channels": gallery.channels,
  }
  protocol = json.loads(json.dumps(protocol))  # as it will be read
  if other is not None:
    _check_protocol(protocol, other["protocol"], args.against)
  if opened is not None and is_codec:
    found = _pairs(made, features, gallery, made.protocol["num"])
  else:
    found = _set(made, features, gallery, experiment, split, directory)
  if args.baseline:
    noise = pictures.of_noise(
      experiment.task,
      experiment.frozen,
      experiment.painter().shape,
      args.pictures,
      args.seed,
    )
    real = features.of(gallery.batches())
    noise = pictures.compare(features, real, features.of(noise))
    found |= {f"random_latents/{name}": value for name, value in noise.items()}
  for name, value in found.items():
    there = other and other.get(name)
    beside = "" if there is None else f"   there {there:.4f}"
    print(f"{name:44} {value:.4f}{beside}", flush=True)
  return {**made.origin, **found, "gen_jax": gen_jax.__version__, "protocol": protocol}


def _drawn(args, opened: trained.Opened, gallery: pictures.Gallery) -> _Made:
  experiment = opened.experiment
  painter, captions = experiment.painter(), gallery.captions(args.pictures)
  protocol = {"num": args.pictures, "weights": opened.kind, "seed": args.seed}

  def batches():
    weights, frozen = opened.weights, experiment.frozen
    return pictures.drawn(painter, weights, frozen, captions, args.seed)

  sampling = experiment.config["sampling"]
  return _Made({"step": opened.step}, {**protocol, "sampling": sampling}, batches)


def _again(args, opened: trained.Opened, gallery: pictures.Gallery) -> _Made:
  num, task = min(args.pictures, len(gallery)), opened.experiment.task

  def batches():
    return pictures.reconstructed(task, opened.weights, gallery.batches(num))

  return _Made({"step": opened.step}, {"num": num, "weights": opened.kind}, batches)


def _in_folder(args, opened: None, gallery: pictures.Gallery) -> _Made:
  """All pictures of a folder but the sheet that `gen-jax sample` adds."""
  found = sources.ImageFolder(args.folder, validation_fraction=0.0).examples("train")
  own = [i for i, path in enumerate(found.source) if path.name != "grid.png"]
  if len(own) < 2:
    raise InputError(f"--folder {args.folder} needs two pictures at least")
  found = dataclasses.replace(found, indices=np.array(own))
  there = pictures.Gallery(found, gallery.size, gallery.channels)
  return _Made({"folder": args.folder}, {"num": len(own)}, there.batches)


def _set(made, features, gallery, experiment, split: str, directory) -> dict:
  """Distances of all pictures together; of each to the training set."""
  shown = []

  def watched():
    for batch in made.batches():
      shown.extend(batch[: _SHOWN - len(shown)])
      yield batch

  real, rows = features.of(gallery.batches()), features.of(watched())
  found = pictures.compare(features, real, rows)
  if split == "train":
    others = experiment.gallery("validation")
    held_out = features.of(others.batches()) if len(others) else None
    more, index = pictures.memorisation(features, real, held_out, rows)
    sheet = [np.stack([x, *gallery.images(i)]) for x, i in zip(shown, index)]  # noqa: B905
    path = directory / "figures" / "nearest.png"
    path.parent.mkdir(exist_ok=True)
    sample.save_sheet(path, np.stack(sheet))
    print(f"pictures, each beside the three nearest it was trained on: {path}")
    found |= more
  return found


def _pairs(made, features, gallery, num: int) -> dict:
  """Each picture beside the one that it was made of, and all of them together."""
  measures = {"psnr": fidelity.psnr}
  if gallery.size >= 11:
    measures["ssim"] = fidelity.ssim
  values = {name: [] for name in measures}

  def watched():
    for real, batch in zip(gallery.batches(num), made.batches(), strict=True):
      for name, measure in measures.items():
        values[name].extend(measure(real, batch))
      yield batch

  rows = features.of(watched())
  found = pictures.compare(features, features.of(gallery.batches(num)), rows)
  return {**{name: float(np.mean(v)) for name, v in values.items()}, **found}


def _read(path: str) -> dict:
  try:
    found = json.loads(pathlib.Path(path).read_text())
    if not isinstance(found["protocol"], dict):
      raise ValueError("its protocol is no object")
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(
      f"--against {path} holds no evaluation of pictures ({error!r}); give the"
      " evaluation.json of gen-jax evaluate --pictures"
    ) from None
  return found


def _check_protocol(here: dict, there: dict, path: str) -> None:
  """What one side alone has (a folder has no sampler) does not count."""
  differ = [
    f"{key} ({there[key]!r} there, {here[key]!r} here)"
    for key in here.keys() & there.keys()
    if here[key] != there[key]
  ]
  if differ:
    raise InputError(
      f"--against {path} was measured under another protocol, the figures do not"
      f" compare: {'; '.join(sorted(differ))}"
    )
