"""The page of a sweep says what its ledger says, and its table sorts in a browser."""

import re
import shutil
import subprocess

import pytest

from gen_jax.cli import main
from gen_jax.sweeps import ledger, page, statistics
from gen_jax.train import curves

EVIL = "which is <best>? </script><script>document.title = 'taken'</script>"
MEANS = {(32, 0.1): 3.0, (32, 0.2): 4.0, (64, 0.1): 2.0, (64, 0.2): 2.5}


def arm(width, peak, seed):
  """Ends at MEANS + 0.1 (seed - 1)."""
  value = MEANS[width, peak] + 0.1 * (seed - 1)
  overrides = {"model.width": width, "model.heads": width // 8, "peak": peak}
  return {
    "name": "",
    "sha256": "",
    "overrides": {**overrides, "seed": seed, "train.num_steps": 2},
    "status": "finished",
    "value": value,
    "curve": [[0, 9.0], [1, value + 1.0], [2, value]],
  }


LEDGER = {
  "format": ledger.FORMAT,
  "question": EVIL,
  "config": "C",
  "metric": "validation/loss",
  "packages": {},
  "python": "3",
  "cores": 2,
  "arms": [arm(*at, seed) for at in MEANS for seed in range(3)],
}


def test_the_table_has_a_line_for_each_config_and_values_to_sort_by():
  found = page.table(LEDGER)
  assert found.columns == ["width", "heads", "peak", "seeds", LEDGER["metric"], *REST]
  means = [line[4][1] for line in found.lines]
  assert means == pytest.approx(list(MEANS.values()))
  assert found.best == 2 and found.lines[2][4][0] == "2.0000"
  rows = ledger.rows(LEDGER)
  pvalues = ledger.pvalues(rows, LEDGER["metric"])
  assert [line[6][1] for line in found.lines] == [pvalues.get(id(r), 2.0) for r in rows]


def test_a_column_with_a_number_stands_at_the_right():
  lines = [[("None", "None"), ("adamw", "adamw")], [("8", 8.0), ("muon", "muon")]]
  assert page.Table(["window", "name"], lines, 0).are_numbers == [True, False]


REST = ["interval", "p"]


def test_a_search_shows_its_arms_along_each_key():
  """Those that were stopped apart; rates on a log scale, words and depths not."""

  def tried(rate, depth, kind, value, steps=None):
    overrides = {"rate": rate, "depth": depth, "kind": kind}
    results = [{"value": 9.0, "steps": 5}] * (steps is None)
    results += [{"value": value, "steps": steps}]
    return {"name": f"rate={rate}", "overrides": overrides, "results": results}

  arms = [tried(1e-4, 2, "a", 3.0), tried(1e-2, 4, "b", 2.0)]
  arms += [tried(1e-3, 3, "b", 4.0, 5), tried(1e-1, 3, "b", None)]
  arms += [{"name": "", "overrides": {"rate": 1.0}, "results": []}]
  found = {**LEDGER, "search": {"arms": arms}}
  plots = {plot.title: plot.figure for plot in page.plots(found)}
  rate, depth, kind = (plots[f"the search along {k}"] for k in arms[0]["overrides"])
  for drawn, x in ((rate, (1e-4, 1e-2, 1e-3)), (depth, (2, 4, 3)), (kind, "abb")):
    whole, early = drawn.data
    assert (*whole.x, *early.x) == tuple(x)
    assert (*whole.y, *early.y) == (3.0, 2.0, 4.0)
  assert early.text == ("rate=0.001, step 5",)
  types = [drawn.layout.xaxis.type for drawn in (rate, depth, kind)]
  assert types == ["log", "linear", None]


def test_a_heat_map_shows_means_once_for_keys_that_vary_together():
  titles = [plot.title for plot in page.plots(LEDGER)]
  assert titles == ["validation/loss over steps", "validation/loss by width and peak"]
  *_, plot = page.plots(LEDGER)
  (drawn,) = plot.figure.data
  assert (drawn.x, drawn.y) == (("32", "64"), ("0.1", "0.2"))
  for i, row in enumerate(drawn.z):
    assert row == pytest.approx([3.0, 2.0] if i == 0 else [4.0, 2.5])
  assert drawn.reversescale  # less is better


def test_curves_show_means_and_intervals():
  plot = next(page.plots(LEDGER))
  band, line = plot.figure.data[:2]
  assert line.x == (1, 2) and line.y == pytest.approx([4.0, 3.0])
  interval = statistics.over_seeds([2.9, 3.0, 3.1])
  assert (band.x, band.y[1]) == ((1, 2, 2, 1), pytest.approx(interval.low))
  assert band.y[2] == pytest.approx(interval.high)


def test_sentences_name_the_best_and_what_is_at_an_edge():
  said = " ".join(page.sentences(LEDGER))
  assert "Best: width=64,heads=8,peak=0.1 with 2.00 ± 0.25 over 3" in said
  assert "3 of 3 others differ" in said and "higher: 0.5" in said
  one = {**LEDGER, "arms": [a for a in LEDGER["arms"] if a["overrides"]["seed"] == 0]}
  assert "One seed each" in " ".join(page.sentences(one))


def test_plots_of_a_run_have_all_points_and_one_switch_for_all_axes():
  rows = [{"step": 0, "validation/loss": 3.0}, {"step": 1, "loss": 2.0, "mfu": 0.5}]
  frames = curves.frames(rows, {"task": {}})
  drawn = curves.figure(rows, frames)
  points = {(line.name, *line.x, *line.y) for line in drawn.data}
  assert points == {("training", 1, 2.0), ("validation", 0, 3.0), ("training", 1, 0.5)}
  (menu,) = drawn.layout.updatemenus
  (log,) = menu.buttons[1].args
  assert set(log) == {"yaxis.type", "yaxis2.type"} and set(log.values()) == {"log"}


@pytest.fixture
def written(tmp_path):
  ledger.write(tmp_path / "results.json", LEDGER)
  main.main(["report", f"--sweep={tmp_path}/results.json"])
  return tmp_path / "report.html"


def test_what_a_ledger_says_is_text_on_the_page(written):
  text = written.read_text()
  assert "</script><script>document.title" not in text
  assert "which is &lt;best&gt;?" in text


def opened(path, view):
  """A page as a browser shows it, and the values of its table."""
  words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
  words += ["--virtual-time-budget=5000", f"file://{path}{view}"]
  done = subprocess.run(words, capture_output=True, text=True, timeout=60)
  body = re.search(r'<table id="rows".*?</table>', done.stdout, re.DOTALL)[0]
  lines = re.findall(r"<tr[^>]*>(<td.*?)</tr>", body, re.DOTALL)
  return done.stdout, [re.findall('data-value="(.*?)"', line) for line in lines]


in_chromium = pytest.mark.skipif(
  shutil.which("chromium") is None, reason="no chromium here"
)


@in_chromium
@pytest.mark.parametrize(
  "view, order",
  [
    pytest.param("#sort=4", [2.0, 2.5, 3.0, 4.0], marks=pytest.mark.long),
    ("#sort=-2", [4.0, 2.5, 3.0, 2.0]),
  ],
)
def test_the_table_is_sorted_as_the_address_says(written, view, order):
  shown, values = opened(written, view)
  assert [float(line[4]) for line in values] == pytest.approx(order)
  assert 'class="main-svg"' in shown  # plotly has drawn
  assert "<title>which is" in shown  # and no script has changed it


@in_chromium
@pytest.mark.parametrize(
  "column", [2, *(pytest.param(c, marks=pytest.mark.long) for c in (4, 5))]
)
def test_what_has_no_number_comes_after_numbers(tmp_path, column):
  """A row that diverged, one without an interval, a value that is text."""
  arms = [{**a, "overrides": dict(a["overrides"])} for a in LEDGER["arms"][:-2]]
  for diverged in arms[3:6]:
    diverged |= {"status": "diverged", "value": None}
    diverged["overrides"]["peak"] = "high"
  ledger.write(tmp_path / "results.json", {**LEDGER, "arms": arms})
  main.main(["report", f"--sweep={tmp_path}/results.json"])
  _, values = opened(tmp_path / "report.html", f"#sort={column}")
  found = [line[column].replace("Infinity", "inf") for line in values]
  assert len(found) == 4 and "high" not in found[:-1]
  numbers = [float(text) for text in found if text != "high"]
  assert numbers == sorted(numbers)


def test_a_ledger_without_results_is_refused(tmp_path, capsys):
  ledger.write(tmp_path / "results.json", {**LEDGER, "arms": []})
  with pytest.raises(SystemExit) as stopped:
    main.main(["report", f"--sweep={tmp_path}/results.json"])
  assert stopped.value.code == 2
  assert "no run of" in capsys.readouterr().err
  assert not (tmp_path / "report.html").exists()
