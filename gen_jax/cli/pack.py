"""`gen-jax pack`: images with captions as a store of shards to train from."""

from __future__ import annotations

from gen_jax import ranges
from gen_jax.cli import tokenize
from gen_jax.data.stored import captioned, packing


def add_arguments(parser) -> None:
  """See `gen-jax pack --help`."""
  add = parser.add_argument
  add(
    "--source",
    action="append",
    required=True,
    help="folder of images with captions, .tar (WebDataset) or .parquet, a glob of"
    " these in quotes, hf:NAME or tfds:NAME; may be repeated",
  )
  add("--image", default="image", help="column of encoded images (default image)")
  add(
    "--caption",
    default="text",
    help="column of captions, or of class numbers, whose names become captions"
    " (default text)",
  )
  add("--label", help="column of class numbers, next to captions")
  add(
    "--held_out",
    type=float,
    default=0.01,
    help="share of images for validation, by their hash (default 0.01); a folder with"
    " validation/ in it has its own split",
  )
  add("--drop", choices=("exact",), help="drop byte-identical copies of images")
  tokenize.add_store(parser, "images")
  parser.epilog = (
    "Images keep their encoding. If killed at any moment, the same command continues\n"
    "and gives the same bytes. To train on it: --config.data.source=image_store\n"
    "--config.data.source.path=DIR"
  )


def run(args) -> dict:
  """Makes the store, or goes on with it."""
  held_out = ranges.typed(args.held_out, ranges.ProperFraction, "--held_out")
  make, shard_bytes = tokenize.work(args)
  paths = tokenize.paths(args, captioned.listed)
  fields = captioned.Fields(args.image, args.caption, args.label)
  job = packing.Job(paths, fields, held_out, args.drop, shard_bytes)
  made = make(args.to, job)
  for split, num in made["num_images"].items():
    print(f"{args.to}, {split}: {num:,} images, {made['num_bytes'][split]:,} bytes")
  return tokenize.result(args, made, "num_images", "num_bytes", "source_sha256")
