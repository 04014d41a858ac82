"""Flags that name files and folders, read the same way by every command."""

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gen_jax.errors import InputError
from gen_jax.system import files


class Path(argparse.Action):
  """A flag that becomes a path; `files.path` says which are refused."""

  def __call__(self, parser, namespace, value, option_string=None) -> None:
    name = option_string or self.metavar
    setattr(namespace, self.dest, None if value is None else files.path(value, name))


class LocalPath(Path):
  """A flag that becomes a `pathlib.Path` of this disk; `files.local` refuses others."""

  def __call__(self, parser, namespace, value, option_string=None) -> None:
    setattr(namespace, self.dest, files.local(value, option_string or self.dest))


class Paths(argparse.Action):
  """A flag that may be repeated: a list of paths."""

  def __call__(self, parser, namespace, value, option_string=None) -> None:
    before = getattr(namespace, self.dest) or []
    setattr(namespace, self.dest, [*before, files.path(value, option_string)])


def check_processes(num: int, name: str) -> None:
  """Raises InputError for more processes than this machine should start at once."""
  most = 4 * len(os.sched_getaffinity(0))
  if not 1 <= num <= most:
    raise InputError(
      f"{name} {num} must be at least 1 and at most {most}, four for each core here"
    )


def check_engine(args, wanted: Mapping[str, Sequence[str]]) -> None:
  """Raises InputError for flags that do not fit --on; `wanted`: {flag: engines}."""
  for name in given(args, wanted):
    if args.on not in wanted[name]:
      raise InputError(f"--{name} needs --on {' or '.join(wanted[name])}")
  if args.on == "ray" and not args.address:
    raise InputError("--on ray needs --address HOST:PORT of Ray's head node")
  if args.on in ("ray", "slurm") and args.to and not files.is_local(args.to):
    raise InputError(
      f"--to {args.to} is in a bucket: --on {args.on} needs a folder of a disk that all"
      " machines share"
    )


def given(args, names: Iterable[str]) -> dict[str, Any]:
  """{name: value} of the flags that were given; a switch that is off was not."""
  found = {name: getattr(args, name, None) for name in names}
  return {k: v for k, v in found.items() if v is not None and v is not False}


def add(parser, named: Mapping[str, Mapping[str, Any]]) -> None:
  """Adds flags by name, with argparse's keywords for each; a DIR is a path."""
  for name, how in named.items():
    path = {"action": Path} if how.get("metavar") == "DIR" else {}
    parser.add_argument(f"--{name}", **path, **how)


def add_config(parser: argparse.ArgumentParser) -> None:
  """The flag of every command that takes a config."""
  parser.add_argument(
    "--config",
    required=True,
    metavar="CONFIG[:ARG]",
    help="a name of `gen-jax list`, a file, a module, or the workdir of another run",
  )


def add_model(parser: argparse.ArgumentParser) -> None:
  """Flags of every command that opens a trained model."""
  parser.add_argument(
    "--workdir", action=Path, required=True, help="folder of a training run"
  )
  parser.add_argument(
    "--checkpoint",
    default="best",
    help="best (default; the latest if none was evaluated), latest, or a step",
  )
  parser.add_argument(
    "--weights", default="ema", help="ema (default; raw if there is no ema) or raw"
  )
