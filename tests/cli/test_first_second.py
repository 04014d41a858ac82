"""What needs no jax does not wait for it."""

import os
import subprocess
import sys

import pytest

from gen_jax.cli import main

CODE = """
import importlib.util, sys
from gen_jax.cli import main
try:
  main.main(sys.argv[1:])
finally:
  lazy = importlib.util._LazyModule
  loaded = {n for n, module in sys.modules.items() if type(module) is not lazy}
  heavy = {"jax", "numpy", "flax", "gen_jax.types", "gen_jax.build"} & loaded
  print("heavy:", sorted(heavy), file=sys.stderr)
"""


def call(*words):
  command = [sys.executable, "-c", CODE, *words]
  done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
  *said, heavy = done.stderr.splitlines()
  assert heavy == "heavy: []"
  return done.returncode, done.stdout, said


# `tokenize --help` lists ways to find copies, whose file has tables of numpy.
LIGHT = sorted({*main.COMMANDS} - {"tokenize"})


@pytest.mark.parametrize("words", [(), *((command,) for command in LIGHT)])
def test_help(words):
  code, out, said = call(*words, "--help")
  assert (code, said) == (0, []) and out.startswith(f"usage: gen-jax {' '.join(words)}")


LOAD = """
import sys
from gen_jax.cli import main
from gen_jax.system import lazy
parsers = main._parser()[1]
with lazy.imports():
  main._add_arguments(sys.argv[1], parsers[sys.argv[1]])
lazy.load()
assert lazy.loaded(f"gen_jax.cli.{sys.argv[1]}")
"""


@pytest.mark.parametrize(
  "command",
  [
    pytest.param(name, marks=[pytest.mark.long] * (name not in ("train", "plan")))
    for name in main.COMMANDS
  ],
)
def test_what_has_waited_loads(command):
  """In whatever order: a package that is imported by the way finds numpy whole.

  What few commands need does not load with them: data's order, formats of others.
  """
  run = [sys.executable, "-c", f"{LOAD}\nprint(*sys.modules)", command]
  done = subprocess.run(run, capture_output=True, text=True, env=dict(os.environ))
  assert done.returncode == 0, done.stderr
  late = {"grain", "gen_jax.convert.to_diffusers", "gen_jax.convert.to_transformers"}
  assert not late & {*done.stdout.split()}


def test_version():
  code, out, said = call("--version")
  assert (code, said) == (0, []) and out.startswith("gen-jax 0.")


@pytest.mark.parametrize(
  "words, says",
  [
    (("trian",), "unknown command 'trian': did you mean 'train'"),
    (("sample", "--promt=a"), "unknown flag '--promt': did you mean '--prompt'"),
    (("sample",), "--workdir"),
    (("--verson",), "unknown flag '--verson': did you mean '--version'"),
    (("sample", "--workdir=r", "--num=x"), "invalid int value: 'x'"),
  ],
)
def test_typing_errors(words, says):
  code, out, said = call(*words)
  (line,) = said
  assert (code, out) == (2, "") and says in line
