"""`gen-jax evaluate` of images: its flags, and whether two evaluations compare.

A figure holds for its protocol alone: how many images, against which, cut how, in
which features, drawn how. Two files whose protocols differ are not compared.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

from gen_jax import build
from gen_jax.cli import flags
from gen_jax.errors import InputError, unknown
from gen_jax.system import files

FLAGS = {
  "images": "N to draw for captions of the split; for an autoencoder: to reconstruct",
  "folder": "evaluate the images of this folder instead",
  "features": "features to compare in; default pixels",
  "feature_weights": "safetensors file of --features",
  "split": "train (default), or validation (default for an autoencoder)",
  "against": "another evaluation.json to compare with; its protocol must be the same",
}
_PATHS = ("folder", "feature_weights", "against")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The flags of images."""
  group = parser.add_argument_group(
    "images, against real ones (instead of the config's evaluators)"
  )
  for name, meaning in FLAGS.items():
    how = {"action": flags.Path} if name in _PATHS else {}
    how |= {"type": int} if name == "images" else {}
    group.add_argument(f"--{name}", help=meaning, **how)
  group.add_argument("--seed", type=int, default=0, help="seed of --images")
  group.add_argument(
    "--baseline", action="store_true", help="also evaluate decoded random latents"
  )


def block(args) -> dict[str, Any]:
  """The keys of the evaluator that the flags stand for; see `evaluation.requested`."""
  if args.images is not None and args.images < 2:
    raise InputError(f"--images {args.images} must be at least 2")
  if args.split not in (None, "train", "validation"):
    raise unknown("--split", args.split, ("train", "validation"))
  features = {"name": args.features or "pixels"}
  if args.feature_weights:
    features["weights"] = str(args.feature_weights)
  build.check("features", features, "--features")
  return {
    "features": features,
    "num": args.images,
    "folder": args.folder and str(args.folder),
    "split": args.split,
    "seed": args.seed,
    "baseline": args.baseline,
  }


def read(path: pathlib.Path) -> dict[str, Any]:
  """The numbers and the protocol of an evaluation.json."""
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


def check(here: dict, other: dict, path: pathlib.Path | None) -> None:
  """Raises InputError unless another evaluation has the protocol of this one.

  What one side alone has (a folder has no sampler) does not count.
  """
  there = other.get("protocol", {})
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
