"""`gen-jax <command>`: parsing, errors and machine-readable output for all commands.

Bad input prints one line and exits with 2. With --json the last line of stdout is one
JSON object.
"""

import argparse
import atexit
import contextlib
import errno
import importlib
import json
import logging
import os
import signal
import sys
import threading
from typing import NoReturn

from gen_jax import files, types
from gen_jax.cli import config_args

COMMANDS = {
  "train": "train a model from a config; the same command resumes",
  "sample": "draw text or pictures from a trained model",
  "plan": "compile a config for chips that are not here; say what it costs",
  "edit": "draw a picture, or a part of it, anew for a prompt",
  "encode": "measure an autoencoder's latents; keep a data set's codes",
  "evaluate": "run a config's evaluators on a checkpoint",
  "illustrate": "draw figures about a picture model for its report",
  "inspect": "show a workdir: config, parameters, steps, hashes of the state",
  "import": "read released weights, of text or pictures, into a workdir",
  "export": "write a model as transformers or diffusers load it",
  "launch": "run train, evaluate or sample on many hosts",
  "report": "write one self-contained HTML page about workdirs",
  "doctor": "check this machine: versions, devices, memory, speed",
}


class _Parser(argparse.ArgumentParser):
  """Says what is wrong in one line."""

  def error(self, message: str):
    raise types.InputError(f"{message} (see {self.prog} --help)")


def _check_flags(words: list[str], parser: argparse.ArgumentParser) -> None:
  """Before argparse, which would first miss what a misspelt flag was meant to give."""
  flags = [s for a in parser._actions for s in a.option_strings if s.startswith("--")]
  for word in words:
    name = word.split("=")[0]
    if name.startswith("--") and " " not in name and name not in flags:
      hint = config_args.flag_hint(word, words) if "--config" in flags else None
      if hint:
        raise types.InputError(f"unknown flag {name!r}: did you mean {hint}?")
      raise types.unknown("flag", name, flags)


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


def _pass_over_absent_tpus() -> None:
  """libtpu, there to compile for TPUs, is not asked for chips where jax sees none."""
  from jax._src import hardware_utils, xla_bridge

  chips, _ = hardware_utils.num_available_tpu_chips_and_device_id()
  if not chips and not {"JAX_PLATFORMS", "JAX_FORCE_TPU_INIT"} & os.environ.keys():
    xla_bridge._backend_factories.pop("tpu", None)  # it would print pages of errors


def run(argv: list[str]) -> dict:
  """Runs one command and returns its result.

  Raises:
    InputError: bad input.
  """
  parser, parsers = _parser()
  if not argv:
    parser.print_help()
    return {}
  command, remote = argv[0], None
  if command == "launch" and "--" in argv:  # what follows is for the hosts
    at = argv.index("--")
    argv, remote = argv[:at], argv[at + 1 :]
  if command not in parsers and not command.startswith("-"):
    raise types.unknown("command", command, COMMANDS)
  if command in parsers:
    # The command's module imports jax; --help and typing errors need not wait for it.
    module = _add_arguments(command, parsers[command])
    if "jax" in sys.modules:  # `launch` does without
      _pass_over_absent_tpus()
  overrides, words = config_args.split_overrides(argv)
  _check_flags(words, parsers.get(command, parser))
  args, extra = parser.parse_known_args(words)
  if extra:
    raise types.InputError(
      f"unexpected argument {extra[0]!r} (see {parser.prog} {args.command} --help)"
    )
  if overrides and not {"config", "checkpoint", "from"} & vars(args).keys():
    raise types.InputError(f"{args.command} takes no --config.* overrides")
  args.overrides, args.words = overrides, remote
  return module.run(args)


@contextlib.contextmanager
def _one_voice():
  """Only the main thread reports, once, what other threads stumble over as well."""
  unraisable, raised = sys.unraisablehook, threading.excepthook

  def from_main_thread(args):
    if threading.current_thread() is threading.main_thread():
      unraisable(args)

  def unless_io(args):
    if not isinstance(args.exc_value, OSError):
      raised(args)

  sys.unraisablehook, threading.excepthook = from_main_thread, unless_io
  try:
    yield
  finally:
    sys.unraisablehook, threading.excepthook = unraisable, raised


def _silence() -> None:
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _fail(message: str) -> NoReturn:
  print("gen-jax: error:", " ".join(message.splitlines()), file=sys.stderr, flush=True)
  atexit.unregister(_silence)
  atexit.register(_silence)  # libraries that fail to clean up say so at the very end
  _exit(2)


def _exit(code: int) -> NoReturn:
  """Ends; of several processes one that failed does not wait for the others."""
  jax = sys.modules.get("jax")
  if jax is not None and jax.distributed.is_initialized():
    sys.stdout.flush()
    os._exit(code)
  sys.exit(code)


def main(argv: list[str] | None = None) -> None:
  """Console entry point."""
  argv = sys.argv[1:] if argv is None else argv
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")  # TFDS's progress bars
  # What matters of their messages is raised as well.
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  logging.getLogger("urllib3").setLevel(logging.ERROR)
  try:
    with _one_voice():
      result = run(argv)
  except types.InputError as error:
    _fail(str(error))
  except BrokenPipeError:  # `gen-jax ... | head` has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)
  except OSError as error:
    if error.strerror is None:
      raise
    where = f" ({error.filename})" if error.filename else ""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    hint = "; make room, then give the same command again" if is_full else ""
    _fail(f"{error.strerror}{where}{hint}")
  except KeyboardInterrupt:
    print("gen-jax: stopped at once", file=sys.stderr, flush=True)
    _exit(128 + signal.SIGINT)
  if "--json" in argv:
    print(json.dumps(files.finite(result)), flush=True)
  if result.get("reason") == "interrupted":
    sys.exit(os.EX_TEMPFAIL)  # not finished: the same command goes on


if __name__ == "__main__":
  main()
