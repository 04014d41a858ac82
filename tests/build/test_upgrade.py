"""Configs of the release before: old keys are read by their new names."""

import json

import pytest

from gen_jax import build
from gen_jax.build import config_files, upgrade
from gen_jax.build import overrides as overriding
from gen_jax.runs import workdir


def old_names(config):
  """The config as the release before had it."""
  back = {new: old for old, new in upgrade.KEYS.items()}

  def renamed(block):
    if not isinstance(block, dict):
      return block
    return {back.get(key, key): renamed(value) for key, value in block.items()}

  return {**config, "task": renamed(config["task"])}


@pytest.mark.parametrize(
  "spec", ["configs/lm/gpt2.py:smoke", "configs/diffusion/digits.py:smoke"]
)
def test_an_old_config_is_read_by_its_new_names(spec):
  config = config_files.load(spec)

  old = old_names(config)
  assert upgrade.config(old) == config
  assert upgrade.config(config) == config


def test_every_old_name_is_said(capsys):
  config = config_files.load("configs/lm/gpt2.py:smoke")
  changed = overriding.apply(config, [("task.model.attend", "chunked")])
  assert changed["task"]["model"]["attention_impl"] == "chunked"
  assert "task.model.attend is now task.model.attention_impl" in capsys.readouterr().out
  assert upgrade.renamed({"task": {"model": {"attend": "xla", "width": 8}}}) == [
    ("task.model.attend", "task.model.attention_impl")
  ]


def test_a_workdir_of_old_names_opens(tmp_path):
  config = config_files.load("configs/lm/gpt2.py:smoke")
  (tmp_path / "config.json").write_text(json.dumps(old_names(config)))
  assert workdir.read_config(tmp_path) == json.loads(json.dumps(config))
  build.check("task", workdir.read_config(tmp_path)["task"], "task")
