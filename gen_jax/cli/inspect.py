"""`gen-jax inspect`: what a workdir holds, with hashes; how an image was made."""

from __future__ import annotations

import jax

from gen_jax import tree
from gen_jax.cli import config_args, flags
from gen_jax.cost import plan
from gen_jax.data import batches
from gen_jax.errors import InputError
from gen_jax.inference import drawing, sheets
from gen_jax.runs import run as runs


def add_arguments(parser) -> None:
  """See `gen-jax inspect --help`."""
  parser.add_argument(
    "image",
    nargs="?",
    action=flags.Path,
    metavar="IMAGE",
    help="a PNG that gen-jax has drawn: says how, instead",
  )
  parser.add_argument("--workdir", action=flags.Path, help="folder of a training run")
  parser.add_argument("--checkpoint", help="latest (default), best, or a step")
  parser.add_argument(
    "--step", type=int, metavar="N", help="show the batch of training step N instead"
  )


def run(args) -> dict:
  """Prints config, parameter table, steps, and a SHA-256 per part of the state."""
  if (args.workdir is None) == (args.image is None):
    raise InputError("give --workdir of a run, or the path of an IMAGE; not both")
  if args.image is not None:
    return _image(args)
  opened = runs.open_run(args.workdir, args.overrides)
  if args.step is not None:
    return _batch(opened, args.step)
  state = opened.state(args.checkpoint or "latest")
  steps, best, told = opened.checkpoints()
  step = int(state.step)
  parts = {"params": state.params, "ema": state.ema, "opt_state": state.opt_state}
  result = {
    "step": step,
    "steps": steps,
    "latest_step": steps[-1],
    "best_step": best,
    "params": tree.size(state.params),
    "params_by_module": plan.parameter_table(state.params),
    "sha256": {
      name: tree.sha256(part) for name, part in parts.items() if jax.tree.leaves(part)
    },
  }
  print(config_args.dump(opened.config))
  print("\nparameters")
  for path, leaf in tree.flatten(state.params).items():
    print(f"  {path:56} {leaf.dtype!s:8} {tuple(leaf.shape)!s:20} {leaf.size:>12,}")
  print(f"  {'all':56} {'':29} {result['params']:>12,}")
  print(f"\ncheckpoints {steps}, latest {steps[-1]}, best {best}; shown: {step}")
  for text in told:
    print(text)
  for name, digest in result["sha256"].items():
    print(f"sha256 {name:10} {digest}")
  return result


def _image(args) -> dict:
  """Prints how an image was made, without characters that a terminal would obey."""
  names = [n for n in ("step", "checkpoint") if getattr(args, n) is not None]
  drawing.check_idle(names, dict.fromkeys(names, "it is of a --workdir, not an image"))
  if args.image.is_dir():
    raise InputError(
      f"{args.image} is a folder, no image; of a run: --workdir {args.image}"
    )
  about = sheets.about_image(args.image)
  for name, value in about.items():
    line = f"{name:24} {value}"
    print("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))
  return about


def _batch(opened: runs.Run, step: int) -> dict:
  """Prints the examples of a training step's batch; images go on a sheet as well."""
  if step < 0:
    raise InputError(f"--step {step} must be at least 0")
  opened.require_tokenizer()
  experiment = opened.experiment
  examples = experiment.pipeline("train")
  found = batches.rows(experiment.tokenizer, examples, step)
  print(f"batch of step {step}, of {opened.config['data']['source']}")
  for row in found:
    print(f"  {batches.line(row)}")
  sheet = batches.sheet(examples.batch(step))
  path = opened.workdir / f"batch_{step:08}.png"
  if sheet is not None:
    sheets.save_sheet(path, sheet)
    print(path)
  return {
    "step": step, "examples": found, "sheet": str(path) if sheet is not None else None
  }  # fmt: skip
