"""`gen-jax export`: a workdir's model as transformers, diffusers or PEFT load it."""

from __future__ import annotations

from gen_jax.cli import flags
from gen_jax.convert import target
from gen_jax.errors import InputError, unknown
from gen_jax.runs import run as runs


def add_arguments(parser) -> None:
  """See `gen-jax export --help`."""
  add = parser.add_argument
  flags.add_model(parser)
  add(
    "--to",
    action=flags.Path,
    required=True,
    metavar="DIR",
    help="new folder; FILE.safetensors: Stable Diffusion 1 with original names",
  )
  add(
    "--adapter",
    action="store_true",
    help="only the LoRA adapter, for PEFT or diffusers; a FILE has kohya's names",
  )
  add("--dtype", default="float32", help="float32 (default), bfloat16 or float16")


def run(args) -> dict:
  """Writes the folder, whole or not at all."""
  if args.dtype not in target.DTYPES:
    raise unknown("--dtype", args.dtype, target.DTYPES)
  if args.to.exists():
    raise InputError(f"--to {args.to} is there already; take another folder")
  opened = runs.open_run(args.workdir, args.overrides)
  return opened.family.export(args, opened)
