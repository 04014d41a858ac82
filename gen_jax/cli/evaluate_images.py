"""`gen-jax evaluate` of images: how near they come to real ones, protocol included.

A figure holds for its protocol alone: how many images, against which, cut how, in
which features, drawn how. Two files whose protocols differ are not compared.
"""

import argparse
import dataclasses
import json
import pathlib

import numpy as np

import gen_jax
from gen_jax import build
from gen_jax.cli import flags
from gen_jax.data import folders, image_files, sources
from gen_jax.evaluation import image_sets
from gen_jax.inference import sheets
from gen_jax.runs import run as runs
from gen_jax.system import files, progress
from gen_jax.types import InputError, unknown

FLAGS = {
  "images": "N to draw for captions of the split; an autoencoder: to draw again",
  "folder": "images that are there already, instead",
  "features": "what to compare in; default pixels",
  "feature_weights": "safetensors file of --features",
  "split": "train (default), or validation (default of an autoencoder)",
  "against": "another evaluation.json; refused under another protocol",
}
_PATHS = ("folder", "feature_weights", "against")
_SHOWN = 8  # images on the sheet of nearest neighbours


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The flags of images."""
  group = parser.add_argument_group(
    "images, against real ones (instead of the config's evaluators)"
  )
  for name, meaning in FLAGS.items():
    how = {"action": flags.Path} if name in _PATHS else {}
    how |= {"type": int} if name == "images" else {}
    group.add_argument(f"--{name}", help=meaning, **how)
  group.add_argument("--seed", type=int, default=0, help="of --images")
  group.add_argument(
    "--baseline", action="store_true", help="also figures of random latents, decoded"
  )


def run(args, opened: runs.Run) -> dict:
  """Measures; refuses what it must before anything is drawn."""
  if (args.folder is None) == (args.images is None):
    raise InputError("give one of --images N and --folder DIR")
  if args.images is not None and args.images < 2:
    raise InputError(f"--images {args.images} must be at least 2")
  again = opened.config["task"]["name"] == "autoencoder" and args.folder is None
  if args.baseline and (args.folder or again):
    raise InputError("--baseline is for --images of a model that draws")
  split = args.split or ("validation" if again else "train")
  if split not in ("train", "validation"):
    raise unknown("--split", split, ("train", "validation"))
  block = {"name": args.features or "pixels"}
  if args.feature_weights:
    block["weights"] = str(args.feature_weights)
  features = build.build("features", block, "--features")
  other = _read(args.against) if args.against else {"protocol": {}}
  if args.folder:
    weights, start = None, {"folder": str(args.folder)}
  else:
    weights = opened.image_weights(args.checkpoint, args.weights)
    start = {"step": weights.step}
  experiment = opened.experiment
  reference = experiment.reference_images(split)
  make = _in_folder if args.folder else _again if again else _drawn
  made, protocol = make(args, opened, weights, reference)
  protocol |= {
    "features": features.name,
    "features_sha256": features.sha256,
    "split": split,
    "reference_num": len(reference),
    "reference_sha256": reference.sha256(),
    "resize": f"centre crop, bilinear, {reference.size}x{reference.size}",
    "channels": reference.channels,
  }
  protocol = json.loads(json.dumps(protocol))  # as it will be read
  _check_protocol(protocol, other["protocol"], args.against)
  if again:
    found = image_sets.pairs(made, features, reference, protocol["num"])
  else:
    real = features.of(reference.batches())
    held_out = experiment.reference_images("validation") if split == "train" else None
    found = _set(made, features, reference, real, held_out, args.workdir)
  if args.baseline:
    how = (weights.frozen, opened.generator.shape, args.images, args.seed)
    noise = image_sets.of_noise(experiment.task, *how)
    noise = image_sets.compare(features, real, features.of(noise))
    found |= {f"random_latents/{name}": value for name, value in noise.items()}
  for name, value in found.items():
    other_run = f"   there {other[name]:.4f}" if name in other else ""
    print(f"{name:44} {value:.4f}{other_run}", flush=True)
  return {**start, **found, "gen_jax": gen_jax.__version__, "protocol": protocol}


def _drawn(args, opened, weights, reference):
  """Images for the captions of a reference, and their part of the protocol."""
  generator, given = opened.generator, (weights.params, weights.frozen)
  if opened.experiment.sampling.size not in (None, (reference.size, reference.size)):
    raise InputError(
      f"sampling.size={opened.experiment.sampling.size}: figures are of images of"
      f" data.image_size={reference.size}; set it to None"
    )
  captions = reference.captions(args.images)
  made = image_sets.drawn(generator, *given, captions, args.seed)
  num = -(-len(captions) // min(generator.batch_size, len(captions)))
  made = progress.lines(made, num, "batches drawn")
  sampling = opened.config["sampling"]
  how = {"weights": weights.name, "seed": args.seed, "sampling": sampling}
  return made, {"num": args.images, **how}


def _again(args, opened, weights, reference):
  """Images of a reference, decoded from their codes."""
  num = min(args.images, len(reference))
  task, real = opened.experiment.task, reference.batches(num)
  made = image_sets.reconstructed(task, weights.params, real)
  return made, {"num": num, "weights": weights.name}


def _in_folder(args, opened, weights, reference):
  """All images of a folder but the sheets that commands add."""
  del opened, weights
  found = folders.images_in(str(args.folder), "--folder")
  own = [path for path in found if path.name not in folders.SHEETS]
  if len(own) < 2:
    raise InputError(f"--folder {args.folder} needs two images at least")
  images = sources.Mapped(own, lambda path: {"image": image_files.open_image(path)})
  made = dataclasses.replace(reference, examples=images)
  return made.batches(), {"num": len(own)}


def _set(made, features, reference, real, held_out, directory) -> dict[str, float]:
  """Distances of all images together; of each to the training set."""
  shown = []

  def watched():
    for batch in made:
      shown.extend(batch[: _SHOWN - len(shown)])
      yield batch

  rows = features.of(watched())
  found = image_sets.compare(features, real, rows)
  if held_out is not None:
    others = features.of(held_out.batches()) if len(held_out) else real[:0]
    more, index = image_sets.memorisation(features, real, others, rows)
    sheet = [np.stack([x, *reference.images(i)]) for x, i in zip(shown, index)]  # noqa: B905
    caption = f"images, each with the nearest three of training, in {features.name}"
    path = sheets.save_figure(directory, "nearest", np.stack(sheet), caption)
    print(f"{caption}: {path}")
    found |= more
  return found


def _read(path: pathlib.Path) -> dict:
  try:
    found = files.read_json(path)
    if not isinstance(found.get("protocol"), dict):
      raise InputError("it has no protocol")
  except InputError as error:
    raise InputError(
      f"--against {path} holds no evaluation of images ({error}); give the"
      " evaluation.json of gen-jax evaluate --images"
    ) from None
  return {n: v for n, v in found.items() if n == "protocol" or type(v) in (int, float)}


def _check_protocol(here: dict, there: dict, path: pathlib.Path | None) -> None:
  """What one side alone has (a folder has no sampler) does not count."""
  differ = [
    f"{key} ({there[key]!r} there, {here[key]!r} here)"
    for key in sorted(here.keys() & there.keys())
    if here[key] != there[key]
  ]
  if differ:
    raise InputError(
      f"--against {path} was measured under another protocol, the figures do not"
      f" compare: {'; '.join(differ)}"
    )
