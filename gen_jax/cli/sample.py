"""`gen-jax sample`: prompts in; text to the terminal, or images into the workdir."""

from __future__ import annotations

import dataclasses

from gen_jax import families
from gen_jax.cli import flags, hosts
from gen_jax.errors import InputError
from gen_jax.inference import batches, drawing, settings
from gen_jax.runs import run as runs


def add_arguments(parser) -> None:
  """See `gen-jax sample --help`."""
  add = parser.add_argument
  flags.add_model(parser)
  hosts.add_arguments(parser)
  add("--prompt", action="append", help="text to continue or to draw; may be repeated")
  add(
    "--prompts",
    action=flags.Path,
    metavar="FILE",
    help="one per line, or `prompt` of each record of a .jsonl",
  )
  add("--num", type=int, default=1, help="samples per prompt")
  add("--seed", type=int, default=0, help="sample i depends on (seed, i)")
  add("--out", action=flags.Path, help="folder to write to; default WORKDIR/samples")
  for gives, own, drawing_keys in (
    ("text", settings.TEXT_FLAGS, settings.TEXT_SETTINGS),
    ("images", settings.IMAGE_FLAGS, settings.IMAGE_SETTINGS),
  ):
    flags.add(parser.add_argument_group(f"{gives} alone"), own)
    title = f"how to draw {gives} (default: the config's sampling block)"
    flags.add(parser.add_argument_group(title), drawing_keys)


def run(args) -> dict:
  """Draws samples and says where they are."""
  drawing.check(args.num, args.seed)
  opened = runs.open_run(args.workdir, args.overrides)
  family = opened.family
  _check_kind(args, family)
  family.check_flags(args)
  if args.prompts:
    args.prompt = [*(args.prompt or []), *batches.read(args.prompts)]
  given = flags.given(args, family.settings)
  tuples = {k: tuple(v) for k, v in given.items() if isinstance(v, list)}
  given = {f"sampling.{k}": v for k, v in {**given, **tuples}.items()}
  opened = opened.configured(given)
  opened = dataclasses.replace(opened, autoencoder=args.autoencoder)
  with hosts.join(args, opened.config):
    return _draw(args, opened)


def _check_kind(args, family: families.Family) -> None:
  """Raises InputError for a flag that is for other models."""
  for other in families.ALL:
    for name in (*other.settings, *other.flags):
      if getattr(args, name) and name not in (*family.settings, *family.flags):
        raise InputError(
          f"--{name} is for {other.gives}; {args.workdir} holds {family.kind}:"
          f" {', '.join(f'--{own}' for own in family.settings)}"
        )


def _draw(args, opened: runs.Run) -> dict:
  opened.require_tokenizer()
  opened.check_idle(name for name, value in vars(args).items() if value)
  weights = opened.weights(args.checkpoint, args.weights)
  return opened.family.sample(args, opened, weights)
