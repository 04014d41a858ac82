"""`gen-jax train`: a config and a workdir in, checkpoints and metrics out."""

from __future__ import annotations

from gen_jax.cli import config_args, flags, hosts
from gen_jax.cost import plan
from gen_jax.errors import InputError
from gen_jax.runs import run as runs
from gen_jax.runs import training
from gen_jax.system import memory


def add_arguments(parser) -> None:
  """See `gen-jax train --help`."""
  add = parser.add_argument
  flags.add_config(parser)
  add("--workdir", action=flags.Path, help="output folder; the same one resumes")
  add(
    "--dry_run",
    action="store_true",
    help="print config, parameters, mesh, sharding and cost of the step; run nothing",
  )
  add(
    "--keys",
    action="store_true",
    help="list the config keys: type, range, default and meaning; run nothing",
  )
  add(
    "--until",
    type=int,
    metavar="STEP",
    help="stop there, with evaluation and checkpoint as at the end; the rates are those"
    " of the whole run, which can continue later",
  )
  hosts.add_arguments(parser)
  parser.epilog = (
    "Any value of the config can be set: --config.optimizer.learning_rate.peak=1e-3\n"
    "A block can be replaced by name: --config.task.target=eps\n"
    "A larger train.num_steps or train.num_epochs continues a finished run.\n"
    "Ctrl-C saves and stops; a second one stops at once."
  )


def run(args) -> dict:
  """Trains, resumes, or only says what would be done."""
  if not (args.workdir or args.dry_run or args.keys):
    raise InputError("--workdir is needed (or --dry_run, or --keys)")
  if args.until is not None and args.until < 1:
    raise InputError(f"--until {args.until} must be at least 1")
  made = runs.fresh(args.config, args.workdir, args.overrides)
  if args.keys:
    return config_args.show_keys(made.config)
  if args.dry_run:
    return _dry_run(made)
  with hosts.join(args, made.config) as group:
    return training.train(made.config, made.workdir, group, until=args.until)


def _dry_run(made: runs.Run) -> dict:
  experiment = made.experiment
  result = plan.describe(experiment, plan.compile(plan.training(experiment)))
  there = memory.available(experiment.layout.replicated)
  print(config_args.dump(made.config), "\n")
  for line in plan.lines(result):
    print(line)
  if result["peak_hbm_bytes"] > there:
    print(plan.too_large(experiment, result["peak_hbm_bytes"], there))
  return {**result, "fits": result["peak_hbm_bytes"] <= there}
