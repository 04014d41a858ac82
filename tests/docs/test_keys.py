"""The page of config keys has every key, what it may be, and what it means."""

import re

import pytest

from gen_jax import build
from gen_jax.build import config_files, meanings
from gen_jax.system import own_configs
from tools import config_keys

KINDS_OF = {"data": "dataset", "train.writers": "writer"}  # elsewhere: the last part


@pytest.fixture(scope="module")
def rows():
  """{(kind, name): {key: the row's other cells}} as the page's Markdown has them."""
  found, here = {}, None
  for line in config_keys.page().split("\n"):
    if heading := re.match(r"### `(\w+)` \{ #(\w+)-\1 \}$", line):
      here = found.setdefault((heading[2], heading[1]), {})
    elif line.startswith("## "):
      here = found.setdefault(line.split()[1], {})
    elif (row := re.match(r"\| `(\w+)` \| (.+) \|$", line)) and here is not None:
      here[row[1]] = row[2].split(" | ")
  return found


def _set(config, path=""):
  """(path of a block, its name, a key in it) of all that a config sets."""
  for key, value in config.items():
    below = f"{path}.{key}".lstrip(".")
    if path and key != "name":
      yield path, config.get("name"), key
    if isinstance(value, dict):
      yield from _set(value, below)


@pytest.mark.parametrize("name", own_configs.names())
def test_every_key_of_every_config_is_there(name, rows):
  """Of all its variants, as their files set them: found by a walk of our own."""
  variants = getattr(config_files.module(name), "VARIANTS", ()) or ("",)
  for variant in (*variants, f"{variants[0]},smoke".lstrip(",")):
    config = config_files.load(f"{name}:{variant}")
    assert config.keys() <= rows["The"].keys()
    for path, block, key in _set(config):
      head, _, kind = path.rpartition(".")
      kind = "evaluator" if head == "evaluators" else KINDS_OF.get(path, kind)
      if path != "evaluators":  # its keys are names of the user's
        assert key in rows[kind, block or kind], (variant, path, key)


def test_every_key_has_a_type_a_default_and_a_meaning(rows):
  for kind, table in build.TABLES.items():
    for name, entry in table.items():
      found = rows.get((kind, name), {})
      assert [*found] == [*entry.keys()]
      for key, (wanted, default, meaning) in found.items():
        assert wanted and default and len(meaning) > 1, (kind, name, key)


def test_a_row_says_what_the_code_does(rows):
  assert rows["optimizer", "adamw"]["b1"][:2] == ["a number in [0, 1)", "`0.9`"]
  norm = rows["model", "transformer"]["norm"]
  assert norm[:2] == ["a block: [norm](#norm)", "`'layer_norm'`"]
  assert rows["learning_rate", "wsd"]["peak"][1] == "needed"
  assert rows["dataset", "text"]["length"][2] == "T, tokens of a row."


def test_no_line_of_meanings_is_idle():
  """Each is that of a key whose owner says nothing."""
  used = {
    part
    for kind, table in build.TABLES.items()
    for entry in table.values()
    for key in entry.keys()
    for part in (key, f"{kind}.{key}")
  }
  assert meanings._LINES.keys() <= used
