"""Every committed ledger makes its README's table, byte for byte, and its figure."""

import itertools
import pathlib

import pytest
import scipy.stats

from gen_jax.sweeps import figure, ledger, statistics, sweep
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


def test_a_config_seldom_differs_from_itself():
  """Twenty comparisons of three runs with three others of the same config.

  Of all pairs of the forty groups about one in twenty has a p below 0.05; with 1.96
  standard errors in place of Student's t it would be one in seven.
  """
  (row,) = ledger.rows(ledger.read(ROOT / "experiments/null" / sweep.RESULTS))
  losses = [row.values[seed] for seed in range(120)]
  groups = [losses[at : at + 3] for at in range(0, 120, 3)]
  pairs = zip(groups[::2], groups[1::2], strict=True)
  found = [statistics.unpaired(*pair).p for pair in pairs]
  assert len(found) == 20 and sum(p < 0.05 for p in found) <= 4
  assert scipy.stats.kstest(found, "uniform").pvalue > 0.01
  every = [statistics.unpaired(*pair).p for pair in itertools.combinations(groups, 2)]
  assert 0.02 < sum(p < 0.05 for p in every) / len(every) < 0.08
