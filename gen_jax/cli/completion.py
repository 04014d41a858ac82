"""`gen-jax completion`: what a shell reads to complete commands, flags and choices."""

from __future__ import annotations

import argparse

from gen_jax.cli import flags, main
from gen_jax.system import lazy, own_configs

# --config takes names of configs and files; `{names}` are filled in.
_BASH = """
_gen_jax_config() {{
  compgen -W "{names}" -- "$1"
  compgen -f -- "$1"
}}
"""
_ZSH = """
_gen_jax_config() {{
  compadd -- {names}
  _files
}}
"""


def add_arguments(parser) -> None:
  """See `gen-jax completion --help`."""
  import shtab

  parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="your shell")
  parser.epilog = (
    'In ~/.bashrc:  eval "$(gen-jax completion bash)"\n'
    'In ~/.zshrc:   eval "$(gen-jax completion zsh)", after compinit\n'
    "In ~/.tcshrc:  gen-jax completion tcsh > ~/.gen-jax.tcsh; source ~/.gen-jax.tcsh"
  )


def run(args) -> dict:
  """Prints the script."""
  import shtab

  parser, commands = main._parser()
  for name, command in commands.items():
    with lazy.imports():
      main._add_arguments(name, command)
    lazy.forget()
    for action in command._actions:
      _completing(action)
  names = " ".join(own_configs.names())
  preamble = {"bash": _BASH.format(names=names), "zsh": _ZSH.format(names=names)}
  print(shtab.complete(parser, args.shell, preamble=preamble))
  return {}


def _completing(action: argparse.Action) -> None:
  """Gives a flag that takes a file or a folder its way to be completed."""
  import shtab

  if isinstance(action.metavar, str):
    action.metavar = action.metavar.replace(":", " ")  # which ends a label in zsh
  if action.dest == "config":
    own = {"bash": "_gen_jax_config", "zsh": "_gen_jax_config", "tcsh": "f"}
    action.complete = own
  elif action.dest == "workdir" or action.metavar == "DIR":
    action.complete = shtab.DIRECTORY
  elif isinstance(action, flags.Path | flags.Paths):
    action.complete = shtab.FILE
