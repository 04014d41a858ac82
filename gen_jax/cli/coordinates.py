"""`gen-jax coordinates`: does the size of what a model computes depend on its width?"""

from __future__ import annotations

import tempfile

from gen_jax.cli import flags
from gen_jax.errors import InputError
from gen_jax.runs import run as runs
from gen_jax.sweeps import coordinates
from gen_jax.system import files


def add_arguments(parser) -> None:
  """See `gen-jax coordinates --help`."""
  flags.add_config(parser)
  add = parser.add_argument
  add("--widths", required=True, help="in rising order: 64,128,256")
  add(
    "--base_width", type=int, help="for muP; default: the config's, or the first width"
  )
  add("--steps", type=int, default=4, help="steps at the config's peak rate (4)")
  add("--seeds", type=int, default=3, help="initial weights to average over (3)")
  add("--out", action=flags.LocalPath, help="folder for coordinates.json and .png")
  parser.epilog = (
    "Runs both the standard parametrisation and muP. Values of the config can be\n"
    "set as for train: --config.optimizer.learning_rate.peak=0.01"
  )


def run(args) -> dict:
  """Trains every width for a few steps and prints slopes."""
  try:
    widths = [int(word) for word in args.widths.split(",")]
  except ValueError:
    raise InputError(
      f"--widths {args.widths} must be whole numbers separated by commas: 64,128,256"
    ) from None
  for name in ("steps", "seeds"):
    if not 1 <= (number := getattr(args, name)) <= 1_000:
      raise InputError(f"--{name} {number} must be at least 1 and at most 1000")
  opened = runs.fresh(args.config, None, args.overrides)
  with tempfile.TemporaryDirectory() as home:
    found = coordinates.check(
      opened.config,
      widths,
      files.local(home, "the scratch folder"),
      num_steps=args.steps,
      num_seeds=args.seeds,
      base_width=args.base_width,
    )
  for line in coordinates.table(found):
    print(line)
  if args.out:
    args.out.mkdir(parents=True, exist_ok=True)
    files.write_json(args.out / "coordinates.json", files.finite(found))
    files.write_bytes(args.out / "coordinates.png", coordinates.png(found))
    print(f"figure: {args.out / 'coordinates.png'}")
  return found
