"""`gen-jax encode`: an autoencoder's latents, measured and kept on disk."""

from __future__ import annotations

import concurrent.futures
import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from gen_jax import tree
from gen_jax.cli import flags
from gen_jax.data import latents, sources
from gen_jax.errors import InputError
from gen_jax.inference import codes
from gen_jax.runs import run as runs
from gen_jax.runs import workdir
from gen_jax.system import copies, files, folders, progress

SPLITS = ("train", "validation")
PIECE = 512  # examples that an interrupted command keeps: some batches of `codes`


def add_arguments(parser) -> None:
  """See `gen-jax encode --help`."""
  flags.add_model(parser)
  parser.add_argument(
    "--to",
    action=flags.Path,
    metavar="DIR",
    help="new folder for the codes of all data",
  )
  parser.add_argument(
    "--flip", action="store_true", help="also encode each image mirrored"
  )
  parser.epilog = (
    "Measures mean and standard deviation of each channel over the training split and\n"
    "writes them to WORKDIR/latents.json, for diffusion on latents. Choose another\n"
    "data set as in `gen-jax train`: --config.data.source=image_folder\n"
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
  if target and not target.name:
    raise InputError(f"--to {target} is a whole bucket; give a folder in it")
  home = target or directory / "latents"
  home = home.with_name(f"{home.name}.partial")
  # In a bucket a command that was cut off may have begun to place it.
  begun = target and not files.is_local(target) and (home / folders.ABOUT).exists()
  if target and target.exists() and not begun:
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
  sizes = {split: len(examples) for split, examples in found.items()}
  about = {**notes, "data": opened.config["data"], "flip": args.flip, "sizes": sizes}
  with opened.alone("latents"), folders.unfinished(home, about):
    given = (experiment.task, chosen.params, experiment.data, args.flip)
    encode = opened.family.encoder(*given)
    made = _pieces(home, "train", encode, found["train"], keep=target is not None)
    notes = {**notes, **codes.statistics(made)}
    if target:
      both = {"train": made}
      both["validation"] = _pieces(
        home, "validation", encode, found["validation"], keep=True
      )
      shards = {split: [x["shard"] for x in both[split]] for split in SPLITS}
      whole = {**notes, "dtype": "uint8", "splits": shards}
      workdir.write_sealed(home / latents.NAME, whole)
      names = [f"{_piece(*p)}.json" for p in _numbered(sizes)]
      _place(home, target, (folders.ABOUT, *names))
  workdir.write_sealed(directory / latents.NAME, notes)
  for name in ("mean", "std"):
    print(f"{name} of each channel: {', '.join(f'{v:.4f}' for v in notes[name])}")
  print(
    f"over {notes['num_images']} images, by the {chosen.name} weights of step"
    f" {chosen.step}: {directory / latents.NAME}"
    + (f"; codes in {target}" if target else "")
  )
  return {"workdir": str(directory), "to": target and str(target), **notes}


def _place(home: pathlib.Path, target: pathlib.Path, spare: Sequence[str]) -> None:
  """Puts a finished cache where it goes; in a bucket latents.json comes last."""
  if files.is_local(home):
    for name in spare:
      (home / name).unlink()
    home.rename(target)
  else:
    copies.copy(home, target, spare, latents.NAME)


def _piece(split: str, number: int) -> str:
  return f"{split}-{number:05}"


def _numbered(sizes: dict[str, int]) -> Iterator[tuple[str, int]]:
  """(split, number) of all pieces."""
  for split, size in sizes.items():
    yield from ((split, number) for number in range(-(-size // PIECE)))


def _pieces(
  home: pathlib.Path, split: str, encode, examples: Sequence, *, keep: bool
) -> list[dict[str, Any]]:
  """Encodes what is missing of a split, a piece at a time; returns sums of each.

  Args:
    encode: examples -> `latents.Code` of each.
    keep: whether the codes are written as a shard, and not their sums alone.
  """
  names = [_piece(*p) for p in _numbered({split: len(examples)})]
  there = files.sizes(home)
  missing = [(i, name) for i, name in enumerate(names) if f"{name}.json" not in there]
  done = len(names) - len(missing)
  what = f"pieces of {split} encoded"
  with concurrent.futures.ThreadPoolExecutor() as pool:
    for i, name in progress.track(missing, len(names), what, done):
      some = range(i * PIECE, min((i + 1) * PIECE, len(examples)))
      drawn = list(encode(list(pool.map(examples.__getitem__, some))))
      made = codes.sums(drawn)
      if keep:
        made["shard"] = latents.write(home / name, drawn)
      workdir.write_sealed(home / f"{name}.json", made)  # last: the piece is complete
  return [files.read_sealed(home / f"{name}.json") for name in names]
