"""Searches run whole, by processes that stand for training: none learns anything."""

import collections
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from gen_jax.sweeps import ledger, search, searching, sweep
from gen_jax.system import files
from gen_jax.types import InputError

SWEEP = '''"""Which rate?"""
from gen_jax.sweeps import integers, log_uniform, uniform
CONFIG, METRIC = "configs/lm/pydoc.py:smoke", "validation/loss"
def get_search():
  return {
    "optimizer.learning_rate.peak": log_uniform(1e-5, 1.0),
    "task.model.dropout": uniform(0.0, 0.3),
    "train.num_steps": 90,
  }
'''
RATE = "optimizer.learning_rate.peak"

# Goes on where it was, to --until or the end; a large rate diverges at step 20.
TRAIN = """
import json, math, os, pathlib, sys, time
words = sys.argv[1:]
flag = lambda name, other: words[words.index(name) + 1] if name in words else other
given = dict(w[9:].split("=", 1) for w in words if w.startswith("--config."))
home = pathlib.Path(flag("--workdir", "")); home.mkdir(parents=True, exist_ok=True)
rate, end = float(given["optimizer.learning_rate.peak"]), int(flag("--until", 90))
path = home / "metrics.jsonl"
lines = path.read_text().split("\\n") if path.exists() else []
rows = [json.loads(line) for line in lines if line]
with open(home / "starts", "a") as file: print(end, file=file)
time.sleep(float(os.environ.get("SECS", 0)))
first = rows[-1]["step"] + 1 if rows else 1
with path.open("a") as file:
  for step in range(first, end + 1):
    if rate > 0.3 and step == 20: sys.exit(65)
    loss = abs(math.log10(rate) + 2) + 10 / step + int(given.get("seed", 0)) / 100
    print(json.dumps({"step": step, "validation/loss": loss}), file=file)
"""


@pytest.fixture
def folder(tmp_path):
  path = tmp_path / "experiment"
  path.mkdir()
  (path / "sweep.py").write_text(SWEEP)
  (tmp_path / "train.py").write_text(TRAIN)
  return path


def load(folder, method="halton", num=12, factor=None, **how):
  how = {"seed": 0, "num_fresh": 3, **how}
  return searching.load(folder, method=method, num=num, factor=factor, **how)


def run(folder, found, jobs=4, name="runs"):
  words = [sys.executable, str(folder.parent / "train.py")]
  home = folder.parent / name
  return home, list(found.run(home, sweep.How(words, jobs)))


def starts(home):
  """{an arm's folder: the ends it was asked to reach}."""
  return {p.parent.name: p.read_text().split() for p in home.glob("*/starts")}


@pytest.mark.parametrize("method", search.METHODS)
def test_the_best_runs_again_on_seeds_of_its_own(folder, method):
  found = load(folder, method)
  home, ran = run(folder, found)
  assert len(ran) == 12 + 3
  entries = found.entries(home)
  best = found.best(entries)
  distance = [abs(exponent(e) + 2) for e in entries if e["results"][0]["value"]]
  assert abs(exponent(best) + 2) == min(distance)
  recorded = found.ledger(home)
  assert [arm["overrides"]["seed"] for arm in recorded["arms"]] == [1, 2, 3]
  (row,) = ledger.rows(recorded)
  assert row.mean == pytest.approx(best["results"][0]["value"] + 0.02)
  table = ledger.table(recorded)
  assert "The best of 12 arms by" in table and "±" in table.split("The best")[0]
  assert run(folder, found)[1] == []  # nothing again


def exponent(entry):
  return math.log10(entry["overrides"][RATE])


def test_more_arms_later_run_alone(folder):
  home, _ = run(folder, load(folder))
  before = starts(home)
  run(folder, load(folder, num=20))
  after = starts(home)
  assert {name: after[name] for name in before} == before
  assert len(after) >= len(before) + 8 and max(map(len, after.values())) == 1
  one, _ = run(folder, load(folder, num=20), name="at-once")
  assert {e["overrides"][RATE] for e in load(folder).entries(home)} == {
    e["overrides"][RATE] for e in load(folder).entries(one)
  }


@pytest.mark.parametrize("method", ["halton", "tpe"])
def test_halving_goes_on_with_the_best_third(folder, method):
  found = load(folder, method, num=18, factor=3)
  assert found.lengths == (10, 30, None)
  home, _ = run(folder, found)
  by_hash = {
    path.rpartition("-")[2]: ends
    for path, ends in starts(home).items()
    if ends != ["90"]  # those on fresh seeds
  }
  ends = collections.Counter(map(tuple, by_hash.values()))
  assert ends.total() == 18
  assert ends[("10", "30", "90")] == 2 and ends[("10",)] == 12, ends
  costs = [found.cost(entry, 0) for entry in found.entries(home)]
  on = [len(entry["results"]) > 1 for entry in found.entries(home)]
  assert max(c for c, is_on in zip(costs, on, strict=True) if is_on) <= min(
    c for c, is_on in zip(costs, on, strict=True) if not is_on
  )
  # Arms of a later, larger search run no rung again.
  before = starts(home)
  run(folder, load(folder, method, num=27, factor=3))
  for name, ends in starts(home).items():
    assert len(ends) == len(set(ends)), (name, ends)
    assert ends[: len(before.get(name, ()))] == before.get(name, [])


def test_diverged_arms_go_no_further(folder):
  found = load(folder, "random", num=20, factor=2)
  home, _ = run(folder, found)
  entries = found.entries(home)
  gone = [e for e in entries if e["overrides"][RATE] > 0.3]
  assert gone and all(
    e["results"][-1]["value"] is None for e in gone if e["results"][1:]
  )
  assert found.best(entries) not in gone


DRIVER = """
import sys; sys.path.insert(0, {root!r})
import pathlib
from tests.sweeps import test_searching as t
found = t.load(pathlib.Path({folder!r}), "tpe", num=16)
for arm, state in t.run(pathlib.Path({folder!r}), found, 2, "killed")[1]: pass
"""


@pytest.mark.long
def test_a_killed_search_goes_on_with_the_same_arms(folder, monkeypatch):
  found = load(folder, "tpe", num=16)
  home, _ = run(folder, found, 2, "whole")
  code = DRIVER.format(root=os.getcwd(), folder=str(folder))
  monkeypatch.setenv("SECS", "0.05")
  for num in (3, 9, 13):  # a kill in Halton's part, two in that of TPE
    driver = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while len(starts(folder.parent / "killed")) < num:
      assert driver.poll() is None and time.monotonic() < deadline
      time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
  killed, _ = run(folder, found, 2, "killed")
  assert found.entries(killed) == found.entries(home)
  one, other = ({**found.ledger(place)} for place in (home, killed))
  for made in (one, other):
    for arm in made["arms"]:
      arm["secs"] = arm["starts"] = 0
  assert one == other


def test_another_search_in_its_place_is_refused(folder):
  home, _ = run(folder, load(folder))
  with pytest.raises(InputError, match="seed is 0 there and 1 now"):
    load(folder, seed=1).entries(home)
  with pytest.raises(InputError, match="halving is None there and 3 now"):
    load(folder, factor=3).entries(home)
  path = folder / "sweep.py"
  path.write_text(path.read_text().replace("0.3)", "0.4)"))
  with pytest.raises(InputError, match="space is"):
    load(folder).entries(home)
  text = (home / searching.NAME).read_text()
  (home / searching.NAME).write_text(text.replace('"seed": 0', '"seed": 1'))
  with pytest.raises(InputError, match="damaged"):
    load(folder).entries(home)


@pytest.mark.parametrize(
  "old, new, how, says",
  [
    ("", "", {"num": 1}, "--arms 1 must be at least 2"),
    ("", "", {"num_fresh": 1}, "--fresh 1 must be at least 2"),
    ("", "", {"seed": -1}, "--seed -1 must be at least 0"),
    ("90", "8", {"factor": 3}, "at least 9; it is 8"),
    ("90", "integers(5, 9)", {"factor": 3}, "needs one train.num_steps"),
    ("90,", "90, 'train.num_epochs': 1.0,", {"factor": 3}, "num_epochs=None"),
    ("get_search", "get_sweep", {}, "needs get_search"),
    ("uniform(0.0, 0.3)", "uniform(0.3, 0.1)", {}, "low < high"),
    ("return {", "return [{", {}, "invalid syntax|SyntaxError|never closed"),
    ("peak", "peek", {}, "did you mean .peak."),
    ("log_uniform(1e-5, 1.0)", "0.1", {"method": "tpa"}, "did you mean 'tpe'"),
    ("validation/loss", "x", {}, "whether lower or higher"),
  ],
)
def test_bad_searches(folder, old, new, how, says):
  path = folder / "sweep.py"
  path.write_text(path.read_text().replace(old, new, 1) if old else SWEEP)
  with pytest.raises(InputError, match=says):
    load(folder, **how)


@pytest.mark.parametrize(
  "change",
  [
    {"about": None},
    {"arms": None},
    {"arms": ["x"]},
    {"arms": [{"overrides": {}}]},
    {"arms": [{"overrides": {}, "results": "x"}]},
    {"arms": [{"overrides": {}, "results": [{"value": "x", "steps": None}]}]},
  ],
)
def test_a_search_that_was_edited_and_has_no_hash_is_damaged(folder, tmp_path, change):
  made = load(folder)
  files.write_json(tmp_path / "search.json", {"about": made._about(), "arms": []})
  assert made.entries(tmp_path) == []
  files.write_json(
    tmp_path / "search.json", {"about": made._about(), "arms": [], **change}
  )
  with pytest.raises(InputError, match="is damaged; restore it, or delete it"):
    made.entries(tmp_path)


def test_more_arms_than_there_are(folder):
  path = folder / "sweep.py"
  few = SWEEP.replace("log_uniform(1e-5, 1.0)", "choice(0.1, 0.2)")
  few = few.replace("uniform(0.0, 0.3)", "integers(1, 3)").replace(
    ".dropout", ".num_layers"
  )
  path.write_text(few.replace("import ", "import choice, "))
  with pytest.raises(InputError, match="--arms 7 must be at most 6"):
    load(folder, num=7)


def test_a_metric_that_nobody_writes(folder):
  path = folder / "sweep.py"
  path.write_text(path.read_text().replace("validation/loss", "validation/accuracy"))
  with pytest.raises(InputError, match="unknown metric"):
    run(folder, load(folder))
