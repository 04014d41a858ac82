"""`gen-jax <command>`: parsing, errors and machine-readable output for all commands.

Bad input prints one line and exits with 2. With --json the last line of stdout is one
JSON object.
"""

import argparse
import difflib
import importlib
import json
import logging
import os
import signal
import sys

from gen_jax import types
from gen_jax.cli import config_args

COMMANDS = {
  "train": "train a model from a config; the same command resumes",
  "sample": "draw text or pictures from a trained model",
  "evaluate": "run a config's evaluators on a checkpoint",
  "inspect": "show a workdir: config, parameters, steps, hashes of the state",
  "report": "write one self-contained HTML page about workdirs",
  "doctor": "check this machine: versions, devices, memory, speed",
}


class _Parser(argparse.ArgumentParser):
  """Says what is wrong in one line."""

  def error(self, message: str):
    raise types.InputError(f"{message} (see {self.prog} --help)")


def _reject_unknown(extra: list[str], parser: argparse.ArgumentParser) -> None:
  flags = [s for a in parser._actions for s in a.option_strings if s.startswith("--")]
  for word in extra:
    if word.startswith("-"):
      name = word.split("=")[0]
      near = difflib.get_close_matches(name, flags, n=2, cutoff=0.5)
      hint = f"did you mean {' or '.join(near)}? " if near else ""
      raise types.InputError(
        f"unknown flag {name}: {hint}There are: {', '.join(sorted(flags))}"
      )
    raise types.InputError(f"unexpected argument {word!r} (see {parser.prog} --help)")


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
  parser = _Parser(
    prog="gen-jax",
    description="Decoder-only transformers and text-conditioned diffusion in JAX.",
  )
  commands = parser.add_subparsers(dest="command", metavar="command", required=True)
  parsers = {}
  for name, summary in COMMANDS.items():
    # Prefix matching would make a misspelt flag mean another one.
    parsers[name] = commands.add_parser(
      name,
      help=summary,
      description=summary.capitalize() + ".",
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
  return parser, parsers


def _add_arguments(command: str, parser: argparse.ArgumentParser):
  module = importlib.import_module(f"gen_jax.cli.{command}")
  module.add_arguments(parser)
  parser.add_argument(
    "--json", action="store_true", help="end stdout with one JSON object"
  )
  return module


def run(argv: list[str]) -> dict:
  """Runs one command and returns its result.

  Raises:
    InputError: bad input.
  """
  parser, parsers = _parser()
  if not argv:
    parser.print_help()
    return {}
  # The command's module imports jax; --help and typing errors need not wait for it.
  if argv[0] in parsers:
    module = _add_arguments(argv[0], parsers[argv[0]])
  elif not argv[0].startswith("-"):
    raise types.unknown("command", argv[0], COMMANDS)
  overrides, words = config_args.split_overrides(argv)
  args, extra = parser.parse_known_args(words)
  _reject_unknown(extra, parsers[args.command])
  if overrides and "config" not in args:
    raise types.InputError(f"{args.command} takes no --config.* overrides")
  args.overrides = overrides
  return module.run(args)


def main(argv: list[str] | None = None) -> None:
  """Console entry point."""
  argv = sys.argv[1:] if argv is None else argv
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  logging.getLogger("absl").setLevel(logging.ERROR)
  try:
    result = run(argv)
  except types.InputError as error:
    print(f"gen-jax: error: {error}", file=sys.stderr)
    sys.exit(2)
  except OSError as error:
    if error.filename is None and error.strerror is None:
      raise
    where = f" ({error.filename})" if error.filename else ""
    print(f"gen-jax: error: {error.strerror}{where}", file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    print("gen-jax: stopped at once", file=sys.stderr)
    sys.exit(128 + signal.SIGINT)
  if "--json" in argv:
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
  main()
