"""`gen-jax encode`: an autoencoder's latents, measured and kept on disk."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Sequence
from typing import Any

from gen_jax import tree
from gen_jax.cli import flags
from gen_jax.data import latents, sources
from gen_jax.errors import InputError
from gen_jax.inference import codes
from gen_jax.runs import run as runs
from gen_jax.runs import workdir
from gen_jax.system import files, folders, progress

SPLITS = ("train", "validation")
PIECE = 512  # examples that an interrupted command keeps: some batches of `codes`


def add_arguments(parser) -> None:
  """See `gen-jax encode --help`."""
  flags.add_model(parser)
  parser.add_argument(
    "--to",
    action=flags.LocalPath,
    metavar="DIR",
    help="new folder for the codes of all data",
  )
  parser.add_argument(
    "--flip", action="store_true", help="encode each image mirrored as well"
  )
  parser.epilog = (
    "Measures mean and standard deviation of each channel over the training split and\n"
    "notes them in WORKDIR/latents.json: diffusion on the latents needs them. Another\n"
    "data set is named as in `gen-jax train`: --config.data.source=image_folder\n"
    "--config.data.source.directory=DIR"
  )


def run(args) -> dict:
  """Measures, and with --to writes the codes; given again, it goes on where it was."""
  directory = args.workdir
  for key, _ in args.overrides:
    if key.split(".")[0] not in ("data", "mesh"):
      raise InputError(
        f"config key {key!r} belongs to the trained model; encode can change data and"
        " mesh"
      )
  opened = runs.open_run(directory).configured(args.overrides)
  target = args.to
  if target and target.exists():
    raise InputError(f"--to {target} is there already; take another folder")
  experiment = opened.experiment
  if opened.family.encoder is None:
    raise InputError(f"{directory} holds no autoencoder; train one (configs/vae)")
  chosen = opened.weights(args.checkpoint, args.weights)
  weights = chosen.params["autoencoder"]
  found = {split: experiment.data.examples(split) for split in SPLITS}
  notes = {
    "sha256": tree.sha256(weights),
    "step": chosen.step,
    "weights": chosen.name,
    "data": opened.config["data"]["source"],
  }
  if "class_names" in sources.gives(experiment.data.source):
    with contextlib.suppress(InputError):  # not every image has a class
      notes["class_names"] = list(experiment.data.source.class_names())
  home = target or directory / "latents"
  home = home.with_name(f"{home.name}.partial")
  sizes = {split: len(examples) for split, examples in found.items()}
  about = {**notes, "data": opened.config["data"], "flip": args.flip, "sizes": sizes}
  with opened.alone("latents"), folders.unfinished(home, about):
    given = (experiment.task, chosen.params, experiment.data, args.flip)
    encode = opened.family.encoder(*given)
    moments = _pieces(home, "train", encode, found["train"], keep=target is not None)
    notes = {**notes, **codes.statistics(moments)}
    if target:
      _pieces(home, "validation", encode, found["validation"], keep=True)
      for split in SPLITS:
        latents.join(home, split)
      names = [f"{split}.array_record" for split in SPLITS]
      notes["files"] = {name: files.sha256(home / name) for name in names}
      workdir.write_sealed(home / latents.NAME, notes)
      for piece in (home / folders.ABOUT, *home.glob("*.0*")):
        piece.unlink()
      home.rename(target)
  workdir.write_sealed(directory / latents.NAME, notes)
  for name in ("mean", "std"):
    print(f"{name} of each channel: {', '.join(f'{v:.4f}' for v in notes[name])}")
  print(
    f"over {notes['num_images']} images, by the {chosen.name} weights of step"
    f" {chosen.step}: {directory / latents.NAME}"
    + (f"; codes in {target}" if target else "")
  )
  return {"workdir": str(directory), "to": target and str(target), **notes}


def _pieces(
  home: pathlib.Path, split: str, encode, examples: Sequence, *, keep: bool
) -> list[dict[str, Any]]:
  """Encodes what is missing of a split, a piece at a time; returns sums of each.

  Args:
    encode: examples -> `latents.Code` of each.
    keep: whether the codes are written, and not their sums alone.
  """
  firsts = range(0, len(examples), PIECE)
  paths = [home / f"{split}.{i:05}.json" for i in range(len(firsts))]
  missing = [
    (f, path) for f, path in zip(firsts, paths, strict=True) if not path.exists()
  ]
  done = len(firsts) - len(missing)
  what = f"pieces of {split} encoded"
  for first, path in progress.track(missing, len(firsts), what, done):
    some = range(first, min(first + PIECE, len(examples)))
    drawn = list(encode([examples[i] for i in some]))
    if keep:
      latents.write(path.with_suffix(".array_record"), drawn)
    workdir.write_sealed(path, codes.sums(drawn))  # last: the piece is complete
  return [files.read_sealed(path) for path in paths]
