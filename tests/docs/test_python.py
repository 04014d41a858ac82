"""The Python of README and docs/ runs as it stands (README's first: tests/runs)."""

import ast
import importlib
import pathlib
import re
import subprocess
import sys

import pytest

from gen_jax import build
from gen_jax.build import config_files
from gen_jax.cli import main
from tests.docs import test_newcomer, test_stories

ROOT = pathlib.Path(__file__).parents[2]


def python(file):
  return re.findall(r"(?ms)^```python\n(.*?)^```", (ROOT / file).read_text())


def test_there_is_no_other_python():
  """Whoever adds a block adds it to a test."""
  files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
  found = {p.name: len(python(p.relative_to(ROOT))) for p in files}
  assert {name: num for name, num in found.items() if num} == {
    "README.md": 3,
    "sweeps.md": 4,
  }


@pytest.mark.long
def test_own_config_and_own_attention(tmp_path):
  """In a process of its own: the name stays registered."""
  for block in python("README.md")[1:]:
    name = re.match(r"# (\w+\.py)", block)[1]
    (tmp_path / name).write_text(block)
  words = ["--config", "mine.py", "--workdir", "run", *test_stories.TEXT.split()]
  done = subprocess.run(
    [sys.executable, "-m", "gen_jax.cli.main", "train", *words],
    cwd=tmp_path,
    env=test_newcomer.environment(tmp_path),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert "attention by sharp" in done.stdout + done.stderr


@pytest.mark.parametrize("number, arms", [(0, 54), (2, None)])
def test_sweeps(number, arms, tmp_path, monkeypatch):
  """`sweep --list` checks every arm."""
  (tmp_path / "sweep.py").write_text(
    f'"""Is it so?"""\n{python("docs/sweeps.md")[number]}'
  )
  monkeypatch.chdir(ROOT)
  words = ["sweep", str(tmp_path), "--list", "--to", str(tmp_path / "runs")]
  found = main.run(words)["arms"]["missing"]
  assert found == arms or (arms is None and found > 9 and found % 3 == 0)


def test_a_search():
  """Its keys are keys of the config, or make one."""
  names = {}
  exec(python("docs/sweeps.md")[1], names)
  config = build.resolved(config_files.load(f"{ROOT}/{names['CONFIG']}"))
  known = {key.path for key in build.keys(config)}
  assert names["get_search"]().keys() <= known and len(names["get_search"]()) == 5


def test_a_forecast_names_what_is_there():
  """The block needs a measured ladder: tests/sweeps/test_scaling.py has one."""
  block = ast.parse(python("docs/sweeps.md")[3])
  asked = [
    (node.value.id, node.attr)
    for node in ast.walk(block)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
  ]
  assert len(asked) == 5
  for owner, name in asked:
    if owner == "fitted":
      owner, name = "scaling", f"Fitted.{name}"
    here = importlib.import_module(f"gen_jax.sweeps.{owner}")
    for part in name.split("."):
      here = getattr(here, part)
