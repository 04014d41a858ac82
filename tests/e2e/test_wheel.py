"""Installed from a wheel or an sdist into an empty folder, used far from a clone."""

import email
import json
import os
import pathlib
import subprocess
import sys
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")

ATTENTION = """
import sys
import gen_jax
from gen_jax.nn import attention

def sharp(query, keyvalue, mask, *, scale: float = 2.0):
  print("sharp attention is traced", file=sys.stderr)
  return attention.attend(scale * query, keyvalue, mask)

gen_jax.register("attention_impl", sharp)
"""
CONFIG = """
from configs.lm import pydoc
import own_attention

def get_config(arg=None):
  config = pydoc.get_config("smoke")
  config.task.model.attention_impl = "sharp"
  return config
"""


# Run by Python at its start: what extras bring is not there.
WITHOUT_EXTRAS = """
import sys
for name in (
  *("tensorflow_datasets", "importlib_resources", "sklearn", "pyarrow", "pandas"),
  *("zstandard", "datasets", "datasketch", "sentencepiece", "tiktoken"),
  *("rouge_score", "sacrebleu", "matplotlib"),
):
  sys.modules[name] = None
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """The folder of a wheel and an sdist."""
  folder = tmp_path_factory.mktemp("dist")
  command = (sys.executable, "-m", "hatchling", "build", "-d", str(folder))
  subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
  return folder


def install(package, place):
  words = (*PIP, "--no-build-isolation", "--target", str(place), str(package))
  subprocess.run(words, check=True, capture_output=True, cwd=place.parent)


def test_the_wheel_holds_what_the_package_needs(built):
  (wheel,) = built.glob("*.whl")
  with zipfile.ZipFile(wheel) as file:
    names = set(file.namelist())
    (about,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(file.read(about))
  for folder, home in (("gen_jax", "gen_jax"), ("configs", "gen_jax/configs")):
    for path in (ROOT / folder).rglob("*"):
      if path.is_file() and path.suffix not in (".pyc", ""):
        assert f"{home}/{path.relative_to(ROOT / folder)}" in names
  assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
    "gen_jax"
  }
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  assert metadata["Name"] == "gen_jax" and metadata["Requires-Python"]
  extras = project["optional-dependencies"]
  assert {*metadata.get_all("Provides-Extra")} == {e.replace("_", "-") for e in extras}


@pytest.mark.long
def test_from_a_wheel_in_an_empty_folder(built, tmp_path):
  (wheel,) = built.glob("*.whl")
  site, work = tmp_path / "site", tmp_path / "work"
  site.mkdir()
  work.mkdir()
  install(wheel, site)
  (site / "sitecustomize.py").write_text(WITHOUT_EXTRAS)
  env = {**os.environ, "PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"}

  def call(*words):
    command = (sys.executable, str(site / "bin" / "gen-jax"), *words)
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done

  where = "import gen_jax; print(gen_jax.__file__)"
  found = subprocess.check_output([sys.executable, "-c", where], env=env, cwd=work)
  assert found.decode().startswith(str(site))
  listed = json.loads(call("list", "lm/pydoc", "--json").stdout.splitlines()[-1])
  assert listed["configs"]["lm/pydoc"]["variants"][""]["parameters"] == 1_969_536
  done = call("train", "--config", "lm/pydoc:smoke", "--workdir", "text", "--json")
  result = json.loads(done.stdout.splitlines()[-1])
  assert (result["reason"], result["step"]) == ("finished", 2)
  command = (sys.executable, str(site / "bin" / "gen-jax"), "train", "--workdir=d")
  command += ("--config=diffusion/digits:smoke",)
  done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
  assert done.returncode == 2 and "pip install 'gen_jax[data]'" in done.stderr
  # A config of one's own, with an attention of one's own, in every phase.
  (work / "own_attention.py").write_text(ATTENTION)
  (work / "mine.py").write_text(CONFIG)
  traced = "sharp attention is traced"
  assert traced in call("train", "--config", "mine.py", "--workdir", "mine").stderr
  (work / "mine.py").unlink()  # the run knows its module
  assert traced in call("sample", "--workdir", "mine", "--prompt", "The").stderr
  assert traced in call("evaluate", "--workdir", "mine").stderr
  (work / "own_attention.py").unlink()
  command = (
    sys.executable,
    str(site / "bin" / "gen-jax"),
    "evaluate",
    "--workdir=mine",
  )
  done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
  (line,) = done.stderr.splitlines()
  assert done.returncode == 2 and "own_attention.py, which cannot be found" in line


@pytest.mark.long
def test_from_an_sdist(built, tmp_path):
  (sdist,) = built.glob("*.tar.gz")
  site = tmp_path / "site"
  site.mkdir()
  install(sdist, site)
  env = {**os.environ, "PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"}
  code = "from gen_jax.system import own_configs as c; print(c.home(), *c.names())"
  home, *names = subprocess.check_output(
    [sys.executable, "-c", code], env=env, cwd=tmp_path, text=True
  ).split()
  assert home == str(site / "gen_jax" / "configs") and "lm/pydoc" in names
