"""A model with random weights and a chat template, and servers of it."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from gen_jax.data import chat
from gen_jax.system import files
from tests.cli import conftest as commands

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
  """A context of 512 tokens."""
  path = tmp_path_factory.mktemp("served") / "run"
  changes = {"num_layers": 2, "width": 32, "num_heads": 2, "max_length": 512}
  changes |= {"tied_head": False}  # with one, it would repeat the last token
  pairs = ((f"task.model.{k}", str(v)) for k, v in changes.items())
  experiment = commands._claim(path, "configs/lm/pydoc.py", *pairs)
  commands.save(path, experiment, [(2, 1.0)], std=0.5)
  home = path / "tokenizer"
  files.write(home / "chat_template.jinja", chat.PLAIN)
  files.write_hashes(home)
  return path


@contextlib.contextmanager
def process(workdir, *words, **environ):
  """A server of its own on any port; yields the process and its address."""
  command = [sys.executable, "-m", "gen_jax.cli.main", "serve", "--workdir", workdir]
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environ}
  started = subprocess.Popen(
    [*map(str, command), "--port=0", *map(str, words)],
    env=env,
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
  )
  try:
    line = started.stdout.readline()
    assert " at http://" in line, started.communicate(timeout=60)
    yield started, line.split(" at ")[1].split(";")[0]
  finally:
    started.kill()
    started.communicate()


@pytest.fixture(scope="session")
def server(workdir):
  """(process, address) of a server that many tests ask."""
  with process(workdir) as found:
    yield found
