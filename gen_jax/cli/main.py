"""`gen-jax <command>`: parsing, errors and machine-readable output for all commands.

Bad input prints one line and exits with 2, what should not happen names a file to send
and exits with 70. With --json the last line of stdout is one JSON object.

What takes long to import is imported once a command's words are right, after signals
are heard: `--help` and typing errors import no jax.
"""

import argparse
import atexit
import contextlib
import gc
import importlib
import importlib.metadata
import json
import logging
import os
import platform
import signal
import sys
import tempfile
import threading
import traceback
from typing import NoReturn

import gen_jax
from gen_jax import errors
from gen_jax.cli import config_args
from gen_jax.system import compilation, lazy, signals

COMMANDS = {
  "list": "the configs that come with gen_jax: sizes, and what each needs",
  "train": "train a model from a config; the same command resumes",
  "sample": "draw text or images from a trained model",
  "serve": "answer requests of OpenAI's protocol with a text model",
  "plan": "compile a config for chips that are not here; say what it costs",
  "edit": "edit an image, or a part of it, for a prompt",
  "tokenize": "write text of any size as a token store to train on",
  "pack": "write images of any number as a store of shards to train on",
  "encode": "measure an autoencoder's latents; keep a data set's codes",
  "evaluate": "run a config's evaluators on a checkpoint",
  "illustrate": "draw figures about an image model for its report",
  "sweep": "run the arms of an experiment; the same command resumes",
  "together": "train runs of one structure in one process, for `sweep`",
  "repro": "run a recorded experiment again: inside its band, or not",
  "coordinates": "check that what a model computes has one size at every width",
  "compare": "the difference between runs, with an interval over seeds",
  "inspect": "show a workdir: config, parameters, steps, hashes of the state",
  "import": "read released weights, of text or images, into a workdir",
  "export": "write a model as transformers or diffusers load it",
  "launch": "run train, evaluate or sample on many hosts",
  "report": "write one self-contained HTML page about workdirs",
  "completion": "what a shell needs to complete commands and flags",
  "doctor": "check this machine: versions, devices, memory, speed",
}

# Flags by their old names, for one release more.
RENAMED = {("evaluate", "--pictures"): "--images", ("plan", "--picture"): "--figure"}


class _Parser(argparse.ArgumentParser):
  """Says what is wrong in one line."""

  def error(self, message: str):
    raise errors.InputError(f"{message} (see {self.prog} --help)")


def _check_flags(words: list[str], parser: argparse.ArgumentParser) -> None:
  """Before argparse, which would first miss what a misspelt flag was meant to give."""
  flags = [s for a in parser._actions for s in a.option_strings if s.startswith("--")]
  for word in words:
    name = word.split("=")[0]
    if name.startswith("--") and " " not in name and name not in flags:
      hint = config_args.flag_hint(word, words) if "--config" in flags else None
      if hint:
        raise errors.InputError(f"unknown flag {name!r}: did you mean {hint}?")
      raise errors.unknown("flag", name, flags)


def _renamed(argv: list[str]) -> list[str]:
  """The words of a command by the flags' new names; a line says which."""
  words = []
  for word in argv:
    name, equals, value = word.partition("=")
    new = RENAMED.get((argv[0], name))
    if new:
      _say(f"gen-jax: {name} is now {new}; the old name goes with the next release")
    words.append(f"{new}{equals}{value}" if new else word)
  return words


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
  parser = _Parser(
    prog="gen-jax",
    description="Decoder-only transformers and text-conditioned diffusion in JAX.",
  )
  version = f"gen-jax {gen_jax.__version__}"
  parser.add_argument("--version", action="version", version=version)
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
  # Imports and traces make much that stays, and is looked through again and again.
  gc.set_threshold(50_000, 20, 50)
  command, remote = argv[0], None
  if command == "launch" and "--" in argv:  # what follows is for the hosts
    at = argv.index("--")
    argv, remote = argv[:at], argv[at + 1 :]
  if command not in parsers and not command.startswith("-"):
    raise errors.unknown("command", command, COMMANDS)
  if command in parsers:
    with signals.importing(), lazy.imports():
      module = _add_arguments(command, parsers[command])
  overrides, words = config_args.split_overrides(_renamed(argv))
  _check_flags(words, parsers.get(command, parser))
  args, extra = parser.parse_known_args(words)
  if extra:
    raise errors.InputError(
      f"unexpected argument {extra[0]!r} (see {parser.prog} {args.command} --help)"
    )
  if overrides and not {"config", "checkpoint", "from"} & vars(args).keys():
    raise errors.InputError(f"{args.command} takes no --config.* overrides")
  args.overrides, args.words = overrides, remote
  with signals.importing():
    lazy.load()
  if "jax" in sys.modules:  # `launch` does without
    _pass_over_absent_tpus()
    # What is compiled for chips that are not here cannot be read back.
    cached = contextlib.nullcontext() if command == "plan" else compilation.kept()
    with cached, compilation.shown():
      return module.run(args)
  return module.run(args)


@contextlib.contextmanager
def _one_voice():
  """The main thread reports what other threads stumble over as well, and no trace."""
  unraisable, raised = sys.unraisablehook, threading.excepthook

  def warn(args):
    _say(f"gen-jax: warning: passed over {args.exc_type.__name__}: {args.exc_value}")

  def from_main_thread(args):
    if threading.current_thread() is threading.main_thread():
      if not isinstance(args.exc_value, signals.Interrupted):
        warn(args)

  def unless_io(args):
    if not isinstance(args.exc_value, OSError):
      warn(args)

  sys.unraisablehook, threading.excepthook = from_main_thread, unless_io
  try:
    yield
  finally:
    sys.unraisablehook, threading.excepthook = unraisable, raised


def _open_streams() -> None:
  """Opens what the shell has closed (`2>&-`): a file of ours would get its number."""
  for number, name in enumerate(("stdin", "stdout", "stderr")):
    try:
      os.fstat(number)
    except OSError:
      null = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
      if null != number:
        os.dup2(null, number)
        os.close(null)
    if getattr(sys, name) is None:
      setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))


def _silence(*numbers: int) -> None:
  null = os.open(os.devnull, os.O_WRONLY)
  for number in numbers or (2,):
    os.dup2(null, number)
  os.close(null)


def _say(line: str) -> None:
  try:
    print(line, file=sys.stderr, flush=True)
  except OSError:  # nobody reads it
    _silence(2)


def _fail(message: str, code: int = 2) -> NoReturn:
  _say(f"gen-jax: error: {' '.join(message.splitlines())}")
  atexit.unregister(_silence)
  atexit.register(_silence)  # libraries that fail to clean up say so at the very end
  _exit(code)


def _exit(code: int) -> NoReturn:
  """Ends; of several processes one that failed does not wait for the others."""
  try:
    sys.stdout.flush()
  except OSError:
    _silence(1)
  jax = lazy.loaded("jax")
  if jax is not None and jax.distributed.is_initialized():
    os._exit(code)
  sys.exit(code)


def _fail_unexpectedly(error: Exception, argv: list[str]) -> NoReturn:
  """One line for what should not happen, and all about it in a file of the user's."""
  about = [f"gen-jax {' '.join(argv)}", f"Python {sys.version}", platform.platform()]
  about += [f"{n} {importlib.metadata.version(n)}" for n in ("gen_jax", "jax", "flax")]
  trace = "".join(traceback.format_exception(error))
  path = "(which could not be written)"
  with contextlib.suppress(OSError):  # a full disk
    number, path = tempfile.mkstemp(prefix="gen-jax-error-", suffix=".txt", text=True)
    with open(number, "w") as file:
      file.write("\n".join([*about, "", trace]))
  words = " ".join(str(error).split())[:300]
  words = f"{type(error).__name__}: {words}" if words else type(error).__name__
  registry = lazy.loaded("gen_jax.build.registry")
  if registry and (at := registry.blamed(error)):
    _fail(f"{at} fails: {words}; its traceback is in {path}")
  own = registry.homes() if registry else []
  or_own = f", or a mistake in {', '.join(own)}" if own else ""
  _fail(f"internal error{or_own}: {words}; please send {path}", os.EX_SOFTWARE)


def _run(argv: list[str]) -> dict:
  """`run`, with every way to fail turned into a line and an exit code."""
  try:
    with _one_voice():
      return run(argv)
  except Exception as error:
    if signals.was_raised():
      raise signals.Interrupted from error
    _explain(error, argv)


def _explain(error: Exception, argv: list[str]) -> NoReturn:
  try:
    raise error
  except errors.Diverged as error:
    _fail(str(error), os.EX_DATAERR)
  except errors.Unavailable as error:
    _fail(str(error), os.EX_TEMPFAIL)
  except errors.InputError as error:
    _fail(str(error))
  except BrokenPipeError:  # `gen-jax ... | head` has seen enough
    _silence(1)
    _exit(128 + signal.SIGPIPE)
  except OSError as error:
    if error.strerror is None:
      _fail_unexpectedly(error, argv)
    _fail(errors.refused(error))
  except Exception as error:
    _fail_unexpectedly(error, argv)


def main(argv: list[str] | None = None) -> None:
  """Console entry point."""
  argv = sys.argv[1:] if argv is None else argv
  _open_streams()
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")  # TFDS's progress bars
  # What matters of their messages is raised as well.
  for name in ("absl", "asyncio"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  logging.getLogger("urllib3").setLevel(logging.ERROR)
  with signals.handling(signals.die):
    try:
      result = _run(argv)
      if "--json" in argv:
        from gen_jax.system import files

        print(json.dumps(files.finite(result)))
      sys.stdout.flush()
    except signals.Interrupted:
      with contextlib.suppress(OSError):
        sys.stdout.flush()
      signals.stop()
    except KeyboardInterrupt:  # raised by hand: signals do not come this way
      _say("gen-jax: stopped at once")
      _exit(128 + signal.SIGINT)
    except OSError as error:  # of stdout
      _silence(1)
      is_pipe = isinstance(error, BrokenPipeError)
      _exit(128 + signal.SIGPIPE) if is_pipe else _fail(f"{error.strerror} (stdout)")
  if code := {"interrupted": signals.EXIT, "outside": 1}.get(result.get("reason")):
    sys.exit(code)


def console() -> None:
  """`main` of a process of its own: what was done is done, whoever signals now.

  It ends as Python does, but for taking apart all that it holds: half a second.
  """
  code = 1

  def leave() -> None:
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(OSError, ValueError):
        stream.flush()
    os._exit(code)

  atexit.register(leave)  # the first, so it is called last
  try:
    main()
    code = 0
  except SystemExit as error:
    code = error.code if isinstance(error.code, int) else 0
  for number in signals.ASKING:
    signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
  console()
