"""Every committed ledger makes its README's table, byte for byte, and its figure."""

import pathlib

import pytest

from gen_jax.sweeps import figure, ledger, sweep
from gen_jax.system import files

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in (ROOT / "experiments").rglob(sweep.FILE))


def test_there_are_experiments():
  assert FOLDERS


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_a_table_is_that_of_its_ledger(folder):
  results, readme = folder / sweep.RESULTS, files.read(folder / "README.md")
  recorded = ledger.read(results)
  assert ledger.render(readme, recorded) == readme


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_a_figure_is_that_of_its_ledger_and_shown(folder):
  recorded = ledger.read(folder / sweep.RESULTS)
  assert figure.source(folder / figure.FILE) == files.value_sha256(recorded)
  assert f"]({figure.FILE})" in files.read(folder / "README.md")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_every_arm_is_recorded(folder, monkeypatch):
  monkeypatch.chdir(ROOT)
  loaded = sweep.load(folder)
  recorded = ledger.read(folder / sweep.RESULTS)
  assert {arm["name"] for arm in recorded["arms"]} == {arm.name for arm in loaded.arms}
  assert recorded["question"] == loaded.question
