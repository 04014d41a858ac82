"""Flags that name files and folders, read the same way by every command."""

import argparse

from gen_jax.system import files


class Path(argparse.Action):
  """A flag that becomes a `pathlib.Path`; `files.path` says which are refused."""

  def __call__(self, parser, namespace, value, option_string=None) -> None:
    setattr(namespace, self.dest, files.path(value, option_string))


class Paths(argparse.Action):
  """A flag that may be repeated: a list of paths."""

  def __call__(self, parser, namespace, value, option_string=None) -> None:
    before = getattr(namespace, self.dest) or []
    setattr(namespace, self.dest, [*before, files.path(value, option_string)])
