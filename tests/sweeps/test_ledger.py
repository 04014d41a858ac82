"""Tables come from results.json alone, and say what seeds allow."""

import json

import pytest

from gen_jax.runs import bill
from gen_jax.sweeps import engine, figure, ledger, space, statistics
from gen_jax.system import files
from gen_jax.train import writers
from gen_jax.types import InputError

METRIC = "validation/loss"


def arm(rate, seed):
  overrides = {"optimizer.learning_rate.peak": rate, "seed": seed}
  return space.Arm(
    f"peak={rate},seed={seed}", overrides, overrides, files.value_sha256(overrides)
  )


def loss(rate, seed):
  return abs(rate - 2e-3) * 100 + 0.01 * seed


@pytest.fixture
def made(tmp_path):
  """Three rates of three seeds; the largest diverges for one seed."""
  arms = [arm(rate, seed) for rate in (1e-3, 2e-3, 4e-3) for seed in range(3)]
  states, workdirs = {}, {}
  for one in arms:
    rate, seed = one.overrides.values()
    folder = engine.workdir(tmp_path, one)
    folder.mkdir()
    sink = writers.JsonLines(folder, -1)
    for step in range(0, 200, 2):
      sink.write(step, {METRIC: loss(rate, seed) + 1.0 / (1 + step)})
    sink.write(200, {METRIC: loss(rate, seed)})
    sink.close()
    diverged = (rate, seed) == (4e-3, 2)
    status = "diverged" if diverged else "finished"
    states[one.sha256] = {"status": status, "starts": 1, "secs": 2.5}
    workdirs[one.sha256] = folder
  about = {"question": "which rate?", "config": "c", "metric": METRIC}
  return ledger.collect(about, arms, states, workdirs)


def test_what_is_written_is_read_and_what_is_edited_refused(made, tmp_path):
  path = tmp_path / "results.json"
  ledger.write(path, made)
  assert ledger.read(path) == json.loads(json.dumps(made))
  text = path.read_text()
  path.write_text(text.replace('"value": 0.11', '"value": 0.01', 1))
  assert path.read_text() != text
  with pytest.raises(InputError, match="damaged"):
    ledger.read(path)
  ledger.write(path, {**made, "format": 2})
  with pytest.raises(InputError, match="format 2"):
    ledger.read(path)
  for other in ({"arms": "x"}, {"arms": [{}]}, {"arms": None}):
    ledger.write(path, {**made, **other})
    with pytest.raises(InputError, match="lacks parts"):
      ledger.read(path)
  ledger.write(path, {k: v for k, v in made.items() if k != "metric"})
  with pytest.raises(InputError, match="lacks parts"):
    ledger.read(path)


@pytest.mark.parametrize(
  "name, value",
  [
    *[("value", value) for value in ("x", [1.0], {})],
    *[("overrides", value) for value in ([1], None, {"seed": [1]}, {"seed": {}})],
    *[("curve", value) for value in (None, "ab", [[1]], [["a", 1.0]], [[1, "b"]], [1])],
    ("status", 3),
  ],
)
def test_an_arm_that_is_none_is_refused(made, tmp_path, name, value):
  """As in a ledger that was edited and has no hash any more."""
  arms = [{**made["arms"][0], name: value}, *made["arms"][1:]]
  ledger.write(tmp_path / "results.json", {**made, "arms": arms})
  with pytest.raises(InputError, match="lacks parts"):
    ledger.read(tmp_path / "results.json")


@pytest.mark.parametrize("search", [3, {}, [], {"best": 0, "arms": [{}]}])
def test_a_search_that_is_none_is_refused(made, tmp_path, search):
  ledger.write(tmp_path / "results.json", {**made, "search": search})
  with pytest.raises(InputError, match="lacks parts"):
    ledger.read(tmp_path / "results.json")


def test_a_finished_arm_without_its_metrics_is_no_diverged_one(tmp_path):
  """Nor is the last row that can be read of a damaged file its value."""
  one = arm(1e-3, 0)
  folder = engine.workdir(tmp_path, one)
  folder.mkdir()
  states = {one.sha256: {"status": "finished", "starts": 1, "secs": 1.0}}
  about = {"question": "?", "config": "c", "metric": METRIC}
  with pytest.raises(InputError, match="has lost its metrics"):
    ledger.collect(about, [one], states, {one.sha256: folder})
  sink = writers.JsonLines(folder, -1)
  sink.write(1, {METRIC: 2.0})
  (folder / "checkpoints/2").mkdir(parents=True)
  with pytest.raises(InputError, match="has lost its metrics"):
    ledger.collect(about, [one], states, {one.sha256: folder})
  sink.write(2, {METRIC: 1.0})
  path = folder / "metrics.jsonl"
  first, second = path.read_text().splitlines()  # whose times may have a 1.0 as well
  changed = second.replace(f'"{METRIC}": 1.0', f'"{METRIC}": 1.5')
  assert changed != second
  path.write_text(f"{first}\n{changed}\n")
  with pytest.raises(InputError, match=r"metrics.jsonl:2 does not have its CRC-32"):
    ledger.collect(about, [one], states, {one.sha256: folder})


def test_a_ledger_says_by_what_code_and_on_what_its_runs_were_made(tmp_path):
  """Of its own arms alone; nothing where none of them says so."""
  arms = [arm(1e-3, seed) for seed in range(4)]
  workdirs = {one.sha256: engine.workdir(tmp_path, one) for one in arms}
  states = {sha: {"status": "finished", "starts": 1, "secs": 1.0} for sha in workdirs}
  states[arms[3].sha256]["status"] = "failed"
  for folder in workdirs.values():
    folder.mkdir()
    writers.JsonLines(folder, -1).write(1, {METRIC: 1.0})
  about = {"question": "?", "config": "c", "metric": METRIC}
  silent = ledger.collect(about, arms, states, workdirs)
  assert not {"revisions", "devices"} & silent.keys()
  start = {"began": 1.0, "until": 2.0, "chips": 1.0}
  code, kinds = ("b", None, "a-dirty", "c"), ("cpu", "cpu", "TPU v4", "GPU")
  for folder, revision, kind in zip(workdirs.values(), code, kinds, strict=True):
    run = files.sealed({"format": 1, "code_revision": revision})
    files.write_json(folder / "run.json", run)
    starts = files.sealed({"starts": [{**start, "kind": kind}]})
    files.write_json(folder / bill.NAME, starts)
  found = ledger.collect(about, arms, states, workdirs)
  assert found["revisions"] == ["a-dirty", "b"]
  assert found["devices"] == ["TPU v4", "cpu"]


def test_curves_are_thinned_and_end_where_the_run_ended(made):
  (first, *_), last = made["arms"][0]["curve"], made["arms"][0]["curve"][-1]
  assert len(made["arms"][0]["curve"]) <= 50 and first[0] <= 4
  assert last == (200, pytest.approx(loss(1e-3, 0)))
  assert made["arms"][0]["value"] == last[1]


def test_a_run_that_ends_without_a_number_has_diverged(tmp_path):
  """Its weights may be finite and its validation not."""
  arms = [arm(1e-3, seed) for seed in range(3)]
  workdirs = {one.sha256: engine.workdir(tmp_path, one) for one in arms}
  for i, folder in enumerate(workdirs.values()):
    folder.mkdir()
    sink = writers.JsonLines(folder, -1)
    for step, value in ((1, 2.0), (2, float("nan") if i == 1 else 1.0)):
      sink.write(step, {METRIC: value})
    sink.close()
  states = {sha: {"status": "finished", "starts": 1, "secs": 1.0} for sha in workdirs}
  about = {"question": "?", "config": "c", "metric": METRIC}
  found = ledger.collect(about, arms, states, workdirs)
  ledger.write(tmp_path / "results.json", found)
  for one in (found, ledger.read(tmp_path / "results.json")):
    (row,) = ledger.rows(one)
    assert row.num_diverged == 1 and row.values == {0: 1.0, 2: 1.0}
    assert figure.lines(one)[""].values == [[2.0, 2.0], [1.0, 1.0]]


def test_seeds_are_repetitions(made):
  found = ledger.rows(made)
  assert [len(row.values) for row in found] == [3, 3, 2]
  assert [row.num_diverged for row in found] == [0, 0, 1]
  wanted = statistics.over_seeds([loss(1e-3, seed) for seed in range(3)])
  assert found[0].interval == wanted
  assert ledger.best(found, METRIC).overrides == {"optimizer.learning_rate.peak": 2e-3}
  assert ledger.best(found, "validation/accuracy").overrides.popitem()[1] == 4e-3


def test_common_seeds_are_paired(made):
  a, b, c = ledger.rows(made)
  assert ledger.compare(a, b).is_paired
  assert ledger.compare(a, b).interval.mean == pytest.approx(-0.1)
  assert ledger.compare(b, c).interval.num == 2
  other = ledger.Row(b.overrides, {7: 1.0, 8: 1.1}, 0)
  assert not ledger.compare(a, other).is_paired
  with pytest.raises(InputError, match="at least 2 seeds"):
    ledger.compare(a, ledger.Row({}, {7: 1.0}, 0))


def test_the_table(made):
  lines = ledger.table(made).splitlines()
  assert lines[0] == f"| peak | seeds | {METRIC} | p |"
  assert lines[2].startswith("| 0.001 | 3 | 0.110 ± 0.025 | ")
  assert lines[3].startswith("| 0.002 | 3 | **0.010 ± 0.025** |  |")
  assert "(1 diverged)" in lines[4] and len(lines) == 5


def test_an_optimum_at_the_edge_is_said(made):
  some = [a for a in made["arms"] if a["overrides"]["seed"] == 0]
  lower = [
    {**a, "overrides": {"optimizer.learning_rate.peak": r}, "value": v}
    for a, r, v in zip(some, (1e-3, 2e-3, 4e-3), (0.1, 0.2, 0.3), strict=True)
  ]
  said = ledger.table({**made, "arms": lower})
  assert "The best value of optimizer.learning_rate.peak is at the edge" in said
  assert "edge" not in ledger.table(made)
  values = ([1, 2], [1, 2, 4], [2])  # as JSON gives back what was a tuple
  lists = [{**a, "overrides": {"a": v}} for a, v in zip(lower, values, strict=True)]
  assert "edge" not in ledger.table({**made, "arms": lists})


def test_a_readme_takes_the_table_between_its_marks(made):
  readme = "# A\n\n<!-- table -->\nold\n<!-- end -->\ntail\n"
  new = ledger.render(readme, made)
  assert ledger.table(made) in new and "old" not in new and new.endswith("tail\n")
  assert ledger.render(new, made) == new
  with pytest.raises(InputError, match="<!-- table -->"):
    ledger.render("# A\n", made)


def test_a_metric_that_nobody_writes(made, tmp_path):
  folder = tmp_path / "run"
  folder.mkdir()
  sink = writers.JsonLines(folder, -1)
  sink.write(1, {METRIC: 1.0})
  sink.close()
  with pytest.raises(InputError, match="did you mean 'validation/loss'"):
    ledger.curve(folder, "validation/los")


def test_the_same_runs_again_are_inside_and_others_are_not(made):
  same = ledger.repeated(made, made)
  assert [row.is_inside for row in same] == [True, True, True]
  assert same[0].label == "peak=0.001"
  shifted = [{**a, "value": a["value"] and a["value"] + 1.0} for a in made["arms"]]
  assert not any(r.is_inside for r in ledger.repeated(made, {**made, "arms": shifted}))
  with pytest.raises(InputError, match="was recorded, not"):
    ledger.repeated(made, {**made, "metric": "validation/mse"})
  with pytest.raises(InputError, match="is not in the recorded"):
    ledger.repeated({**made, "arms": made["arms"][:3]}, made)


def test_settings_of_sampling_are_rows_with_further_metrics(tmp_path):
  """One run of each seed gives a row for each setting, paired like any other."""
  block = {"settings": [["scale=1,sampler=ddim", {}], ["scale=2.5,sampler=ddim", {}]]}
  config = {"evaluators": {"fidelity": None, "x": block}}
  arms, states, workdirs = [], {}, {}
  for seed in range(3):
    one = space.Arm(f"seed={seed}", {"seed": seed}, config, f"sha{seed}")
    workdirs[one.sha256] = folder = tmp_path / one.name
    folder.mkdir()
    sink = writers.JsonLines(folder, -1)
    for step in (1, 2):
      row = {f"scale={s},sampler=ddim/f/frechet": s + seed / step for s in (1, 2.5)}
      row |= {f"scale={s},sampler=ddim/f/recall": 1 / (s + step) for s in (1, 2.5)}
      sink.write(step, row)
    sink.close()
    states[one.sha256] = {"status": "finished", "starts": 1, "secs": 2.5}
    arms.append(one)
  about = {"question": "?", "config": "c", "metric": "f/frechet", "also": ["f/recall"]}
  found = ledger.collect(about, arms, states, workdirs)
  assert [arm["overrides"] for arm in found["arms"][:2]] == [
    {"seed": 0, "scale": 1, "sampler": "ddim"},
    {"seed": 0, "scale": 2.5, "sampler": "ddim"},
  ]
  assert [arm["name"] for arm in found["arms"][1:3]] == ["seed=0", "seed=1"]
  first, second = ledger.rows(found)
  assert first.values == {0: 1.0, 1: 1.5, 2: 2.0}
  assert ledger.compare(first, second).is_paired
  frechet, recall = ledger.views(found)
  assert frechet is found and recall["metric"] == "f/recall"
  assert ledger.rows(recall)[1].values == dict.fromkeys(range(3), 1 / 4.5)
  head, _, line, *_ = ledger.table(found).splitlines()
  assert head == "| scale | seeds | f/frechet | p | f/recall |"
  assert line.startswith("| 1 | 3 | **1.5 ± 1.2** |  | 0.3333 ± 0 |")
