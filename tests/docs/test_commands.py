"""Every command in README and docs/ can be typed as it stands."""

import itertools
import pathlib
import re
import shlex

import pytest

from gen_jax import build
from gen_jax.build import config_files
from gen_jax.build import overrides as overriding
from gen_jax.cli import config_args, main
from gen_jax.data import sources

ROOT = pathlib.Path(__file__).parents[2]
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OURS = ("gen-jax ", ".venv/bin/gen-jax ")
# What stands for words of the reader's.
CONFIG = {"C": "lm/gpt2", "NAME": "lm/pydoc"}


def blocks(text):
  """The lines of code blocks that name no language, with what goes on joined."""
  for language, block in re.findall(r"(?ms)^ *```(\w*)\n(.*?)^ *```", text):
    if not language:
      yield from re.sub(r"\\\n", " ", block).split("\n")


def commands():
  """[(file, words)] of all lines that call gen-jax, comments and brackets taken off."""
  found = []
  for path in FILES:
    for line in blocks(path.read_text()):
      line = re.sub(r"^\s*(?:[A-Z_]+=\S+ )*", "", line)
      if line.startswith(OURS):
        line = re.sub(r"( \.\.\.)?(\s+# .*)?$", "", line)
        line = line.replace(" [", " ").replace("]", "")
        found.append((path.name, shlex.split(line)[1:]))
  return found


def shown(command):
  return f"{command[0]} {' '.join(command[1])}"[:90]


def config_of(words):
  """The config that a command names, or the one whose kind of model it is about."""
  spec = dict(itertools.pairwise(words)).get("--config")
  return CONFIG.get(spec, spec)


@pytest.mark.parametrize("command", commands(), ids=shown)
def test_flags_and_keys_are_there(command):
  """Flags parse; keys of the config are there, and values in their ranges."""
  words = command[1]
  if words[0] == "launch":
    at = words.index("--")
    check(words[:at])
    words = words[at + 1 :]
    if words == ["train"]:
      return
  check(words)


def check(words):
  words = [re.sub(r"(s3|gs)://", "", word) for word in words]  # it would be asked
  pairs, flags = config_args.split_overrides(words)
  parser, parsers = main._parser()
  main._add_arguments(words[0], parsers[words[0]])
  main._check_flags(flags, parsers[words[0]])
  _, extra = parser.parse_known_args(flags)
  assert not extra
  if spec := config_of(flags):
    config = overriding.apply(config_files.load(spec), pairs)
    if config["task"] is not None:  # else that of the run to start from
      build.check_config(build.resolved(config))


SOURCES = [
  (path.name, shlex.split(re.sub(r"^\.\.\. |[][]", "", line), comments=True))
  for path in FILES
  for line in blocks(path.read_text())
  if re.match(r"(\.\.\. )?--config\.data\.source=", line)
]


@pytest.mark.parametrize("line", SOURCES, ids=shown)
def test_lines_of_sources_fit_a_config(line):
  """A language model's, or one of images."""
  pairs, _ = config_args.split_overrides(line[1])
  refused = []
  for spec in ("lm/pydoc", "diffusion/digits"):
    config = overriding.apply(config_files.load(spec), pairs)
    build.check_config(build.resolved(config))
    data = build.build("dataset", config["data"], "data")
    refused.append(data.reads not in sources.gives(data.source))
  assert sorted(refused) == [False, True]
