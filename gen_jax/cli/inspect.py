"""`gen-jax inspect`: a workdir, with hashes; how an image was made; a whole store."""

from __future__ import annotations

import pathlib

import jax

from gen_jax import tree
from gen_jax.cli import config_args, flags
from gen_jax.cost import plan
from gen_jax.data import batches, latents
from gen_jax.data.tokens import store
from gen_jax.errors import InputError
from gen_jax.inference import drawing, sheets
from gen_jax.runs import run as runs
from gen_jax.system import progress

_OF_A_RUN = "it is of a --workdir, not an image or a store"


def add_arguments(parser) -> None:
  """See `gen-jax inspect --help`."""
  add = parser.add_argument
  add(
    "path",
    nargs="?",
    action=flags.Path,
    metavar="PATH",
    help="instead: a PNG by gen-jax (prints how it was drawn), or a store of tokenize,"
    " pack or encode (checks the hash of every shard)",
  )
  add("--workdir", action=flags.Path, help="folder of a training run")
  add("--checkpoint", help="latest (default), best, or a step")
  add("--step", type=int, metavar="N", help="show the batch of training step N instead")


def run(args) -> dict:
  """Prints config, parameter table, steps, and a SHA-256 per part of the state."""
  if (args.workdir is None) == (args.path is None):
    raise InputError(
      "give --workdir of a run, or the PATH of an image or a store; not both"
    )
  if args.path is not None:
    names = [n for n in ("step", "checkpoint") if getattr(args, n) is not None]
    drawing.check_idle(names, dict.fromkeys(names, _OF_A_RUN))
    return (_store if args.path.is_dir() else _image)(args.path)
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


def _store(path: pathlib.Path) -> dict:
  """Checks the hashes of all shards of a store, and prints what it holds."""
  manifest = latents.read_statistics(path)
  if manifest is None and (path / store.MANIFEST).exists():
    manifest = store.read_manifest(path, None)
  if manifest is None or "splits" not in manifest:
    raise InputError(
      f"{path} is a folder, no image, and holds no store of shards; of a run: --workdir"
      f" {path}"
    )

  def watched(digests, total):
    return progress.track(digests, total, "shards read")

  num = store.check_hashes(path, manifest, watched)
  sizes = {
    split: sum(shard["documents"] for shard in shards)
    for split, shards in manifest["splits"].items()
  }
  words = ", ".join(f"{split}: {size:,}" for split, size in sizes.items())
  print(f"{path}: {num} shards are as they were written ({words} documents)")
  return {"path": str(path), "shards": num, "documents": sizes}


def _image(path: pathlib.Path) -> dict:
  """Prints how an image was made, without characters that a terminal would obey."""
  about = sheets.about_image(path)
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
