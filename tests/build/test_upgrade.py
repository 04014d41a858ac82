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

  old = {**config, "task": renamed(config["task"])}
  if (task := old["task"])["name"] == "diffusion":
    task["unet"], text = task.pop("network"), task.pop("conditioning")
    task["text_encoder"] = text.get("text_encoder", {"name": "text_encoder"})
    task["caption_drop_prob"] = task.pop("drop_prob")
    if text["name"] == "none":
      old["data"] = {**old["data"], "tokenizer": "bytes", "caption_length": 32}
  return old


@pytest.mark.parametrize(
  "spec",
  [
    "configs/lm/gpt2.py:smoke",
    "configs/diffusion/digits.py:smoke",
    "configs/diffusion/ddpm_cifar10.py",  # whose text encoder was idle
  ],
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
    "task.model.attend is now task.model.attention_impl"
  ]


def test_every_block_that_moved_is_said(capsys):
  config = config_files.load("configs/diffusion/digits.py:smoke")
  changes = {
    "task.unet.width": ("task.network.width", 8),
    "task.text_encoder.num_layers": ("task.conditioning.text_encoder.num_layers", 3),
    "task.caption_drop_prob": ("task.drop_prob", 0.5),
  }
  for old, (new, value) in changes.items():
    config = overriding.apply(config, [(old, str(value))])
    assert capsys.readouterr().out.startswith(f"config key {old} is now {new};")
    assert workdir.flat(config)[new] == value
  assert upgrade.renamed(old_names(config)) == [
    "task.unet is now task.network",
    "task.text_encoder is now task.conditioning.text_encoder",
    "task.caption_drop_prob is now task.drop_prob",
  ]


def test_an_autoencoder_had_a_tokenizer_that_it_does_not_read():
  config = config_files.load("configs/vae/emoji.py:smoke")
  more = {"tokenizer": {"name": "bytes"}, "caption_length": 1}
  old = {**config, "data": {**config["data"], **more}}
  assert upgrade.config(old) == config
  assert upgrade.renamed(old) == [
    "data.caption_length is not read",
    "data.tokenizer is not read",
  ]


def test_a_workdir_of_old_names_opens(tmp_path):
  config = config_files.load("configs/lm/gpt2.py:smoke")
  (tmp_path / "config.json").write_text(json.dumps(old_names(config)))
  assert workdir.read_config(tmp_path) == build.resolved(config)
  build.check("task", workdir.read_config(tmp_path)["task"], "task")
