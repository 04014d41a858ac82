"""A config by name, path, module or workdir; configs elsewhere share our pieces."""

import sys

import pytest

import gen_jax
from gen_jax.build import config_files
from gen_jax.system import own_configs
from gen_jax.types import InputError
from tests.cli import conftest

ROOT = conftest.ROOT
_text_workdir, text_workdir = conftest._text_workdir, conftest.text_workdir
PYDOC = ROOT / "configs" / "lm" / "pydoc.py"
OWN = """
from configs import common
import {neighbour}

def get_config(arg=None):
  _, smoke = common.parse_arg(arg)
  config = common.language_model({{"width": {neighbour}.WIDTH, "num_heads": 1}})
  return common.smoke(config) if smoke else config
"""


def forget_modules(folder):
  """As if nothing of a folder had been imported."""
  for name, module in list(sys.modules.items()):
    if str(getattr(module, "__file__", None)).startswith(str(folder)):
      del sys.modules[name]
  sys.modules.pop("configs", None)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  """A folder that is not a clone, and an interpreter that forgets what it imported."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", list(sys.path))
  yield tmp_path
  forget_modules(tmp_path)


@pytest.mark.parametrize(
  "name", ["lm/pydoc", "configs/lm/pydoc.py", "lm/pydoc.py", str(PYDOC)]
)
def test_ours_are_found_anywhere(elsewhere, name):
  assert config_files.find(name) == PYDOC
  config = config_files.load(f"{name}:smoke")
  assert config["train"]["num_steps"] == 2 and config["task"]["model"]["width"] == 32


def test_every_config_is_named_once():
  assert [config_files.find(name) for name in own_configs.names()] == sorted(
    p for p in (ROOT / "configs").glob("*/*.py") if p.name != "__init__.py"
  )


def test_a_file_here_comes_before_one_of_ours(elsewhere):
  (elsewhere / "configs" / "lm").mkdir(parents=True)
  file = elsewhere / "configs" / "lm" / "pydoc.py"
  file.write_text("")
  assert config_files.find("configs/lm/pydoc.py") == file
  assert config_files.find("lm/pydoc") == PYDOC


def test_an_own_config_shares_our_pieces_and_imports_its_neighbours(elsewhere):
  (elsewhere / "near_a_config.py").write_text("WIDTH = 24")
  (elsewhere / "mine.py").write_text(OWN.format(neighbour="near_a_config"))
  assert config_files.load("mine.py")["task"]["model"]["width"] == 24
  assert config_files.load("mine.py:smoke")["task"]["model"]["width"] == 32


def test_a_folder_named_configs_finds_its_own_first_and_ours_behind(elsewhere):
  folder = elsewhere / "configs"
  folder.mkdir()
  (folder / "sizes.py").write_text("WIDTH = 8")
  (folder / "mine.py").write_text(
    OWN.format(neighbour="sizes").replace("import sizes", "from configs import sizes")
  )
  assert config_files.load("configs/mine.py")["task"]["model"]["width"] == 8
  (folder / "common.py").write_text("raise ValueError('theirs')")
  assert config_files.load("lm/pydoc")  # ours have not become theirs
  with pytest.raises(InputError, match="theirs"):
    config_files.load("configs/mine.py")


def test_a_module_of_a_package_may_import_relatively(elsewhere):
  package = elsewhere / "a_package_of_configs"
  package.mkdir()
  (package / "__init__.py").write_text("")
  (package / "sizes.py").write_text("WIDTH = 16")
  source = OWN.format(neighbour="sizes").replace("import sizes", "from . import sizes")
  (package / "mine.py").write_text(source)
  config = config_files.load("a_package_of_configs.mine")
  assert config["task"]["model"]["width"] == 16


def test_a_config_of_an_unknown_name_is_one_line(elsewhere):
  for name in ("lm/pydo", "pydo", "configs.lm.pydo", "no.such.module"):
    with pytest.raises(InputError, match=f"unknown config '{name}'") as error:
      config_files.load(name)
    assert "lm/pydoc" in str(error.value)


def test_the_config_of_a_workdir_is_taken_whole(text_workdir, tmp_path):
  there = gen_jax.open(text_workdir).config
  made = gen_jax.new(str(text_workdir), tmp_path / "new", {"seed": 7})
  assert made.config == {**there, "seed": 7}
  made = gen_jax.new(text_workdir, tmp_path / "new")
  assert made.config == there
