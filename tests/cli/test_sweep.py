"""`gen-jax sweep` and `compare`: what is refused, what is listed, a sweep run whole."""

import json
import os
import time

import pytest

import gen_jax
from gen_jax.runs import lease
from gen_jax.sweeps import engine, ledger, searching
from gen_jax.system import files
from gen_jax.train import writers

HEAD = 'CONFIG, METRIC = "configs/lm/pydoc.py:smoke", "validation/loss"\n'
IMPORTS = "from gen_jax.sweeps import chain, fixed, product, values, zip_\n"
RATE = "optimizer.learning_rate.peak"


@pytest.fixture
def experiment(tmp_path):
  """Writes a sweep.py whose get_sweep returns an expression."""

  def write(expression, head=HEAD):
    folder = tmp_path / "experiment"
    folder.mkdir(exist_ok=True)
    body = (
      f'"""A question?"""\n{IMPORTS}{head}def get_sweep():\n  return {expression}\n'
    )
    (folder / "sweep.py").write_text(body)
    return folder

  return write


@pytest.mark.parametrize(
  "expression, head, says",
  [
    ("[]", HEAD, ["at least one"]),
    ("values('seed', (1, 1))", HEAD, ["one config"]),
    ("values('optimizer.lerning_rate', (1,))", HEAD, ["learning_rate"]),
    ("fixed({'seed': 0})", HEAD, ["seed=0 changes nothing"]),
    ("1 / 0", HEAD, ["line 5", "ZeroDivisionError"]),
    ("3", HEAD, ["list of dicts"]),
    ("[{1: 2}]", HEAD, ["list of dicts of config keys"]),
    ("fixed()", HEAD + "ALSO = 'validation/accuracy'\n", ["ALSO='validation/acc"]),
    ("fixed()", HEAD + "ALSO = (1,)\n", ["ALSO[0]=1", "text"]),
    ("fixed()", "CONFIG, METRIC = None, 'validation/loss'\n", ["CONFIG", "None"]),
    ("fixed()", HEAD + "METRIC = ('validation/loss',)\n", ["METRIC", "text"]),
    ("fixed()", HEAD.replace("METRIC", "OTHER"), ["needs METRIC"]),
    ("fixed()", HEAD.replace("validation/loss", "x"), ["whether lower or higher"]),
    ("fixed()", HEAD.replace("pydoc", "pydok"), ["pydoc"]),
  ],
)
def test_bad_sweeps(refuse, experiment, tmp_path, expression, head, says):
  folder = experiment(expression, head)
  refuse("sweep", folder, "--to", tmp_path / "runs", says=says)
  assert not (tmp_path / "runs").exists()


def test_a_folder_without_a_sweep(refuse, tmp_path):
  refuse("sweep", tmp_path, says=["has no sweep.py"])


def test_a_long_list_is_quick_and_runs_nothing(call, experiment, tmp_path):
  folder = experiment(
    "product(values('seed', range(50)), values('data.length', (8, 9, 10, 11)))"
  )
  began = time.process_time()
  outcome = call("sweep", folder, "--list", "--to", tmp_path / "runs")
  assert time.process_time() - began < 1.5  # and 2 s to import what it needs
  assert outcome.code == 0 and "200 arms: 200 missing" in outcome.out
  assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("jobs", [0, -1, 100_000])
def test_jobs_that_no_machine_has_cores_for_are_refused(
  refuse, experiment, tmp_path, jobs
):
  words = ("sweep", experiment("fixed()"), "--to", tmp_path / "runs", "--jobs", jobs)
  refuse(*words, says=[f"--jobs {jobs} must be", "four for each core"])
  assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
  "flags, says",
  [
    (["--on", "rai"], ["unknown engine (--on) 'rai': did you mean 'ray'?"]),
    (["--on", "ray"], ["needs --address HOST:PORT"]),
    (["--on", "ray", "--address", "127.0.0.1:1"], ["no Ray answers"]),
    (["--on", "ray", "--address", "a:1", "--list"], ["--list and --record run none"]),
    (["--on", "slurm", "--option", "a"], ["--option 'a' must be KEY=VALUE"]),
    (["--on", "slurm", "--jobs", "0"], ["--jobs 0 must be at least 1"]),
    (["--on", "sky"], ["needs --bucket"]),
    (["--on", "sky", "--bucket", "s3://b;x"], ["--bucket 's3://b;x'"]),
    (["--address", "a:1"], ["--address needs --on ray"]),
    (["--option", "a=1"], ["--option needs --on ray or slurm or sky"]),
    (["--bucket", "gs://b"], ["--bucket needs --on sky"]),
    (["--arms", "3"], ["--arms needs --search"]),
    (["--halving", "3"], ["--halving needs --search"]),
    (["--search", "tpa"], ["unknown method (--search) 'tpa': did you mean 'tpe'?"]),
    (["--search", "tpe"], ["needs get_search"]),
    (["--search", "tpe", "--together", "map"], ["no --search tpe"]),
  ],
)
def test_bad_engines_and_searches(refuse, experiment, tmp_path, flags, says):
  folder, home = experiment("fixed()"), tmp_path / "runs"
  refuse("sweep", folder, "--to", home, *flags, says=says)
  assert not home.exists()


def test_machines_of_a_cluster_need_a_disk(refuse, experiment, bucket):
  words = ("sweep", experiment("fixed()"), "--to", f"{bucket}/runs", "--on", "slurm")
  refuse(*words, says=["is in a bucket", "--on slurm needs a folder of a disk"])


def test_sky_s_task_is_the_sweep_itself_with_its_runs_in_a_bucket(call, experiment):
  folder = experiment("fixed()")
  words = ("--on", "sky", "--bucket", "gs://b", "--option", "accelerators=H100:8")
  outcome = call("sweep", folder, *words, "--search", "halton", "--arms", "9", "--json")
  assert outcome.code == 0
  found = json.loads(outcome.out.splitlines()[-1])
  ((path, text),) = found["files"].items()
  task = json.loads(text)
  assert task["file_mounts"]["/bucket"]["source"] == "gs://b"
  assert task["resources"] == {"use_spot": True, "accelerators": "H100:8"}
  assert task["run"].endswith(
    f"sweep {folder} --to /bucket/experiment --search halton --arms 9"
  )
  assert found["start"][0][:3] == ["sky", "jobs", "launch"]
  assert text in outcome.out and path in outcome.out


def test_a_second_sweep_in_one_place_is_refused(refuse, experiment, tmp_path):
  with lease.hold(tmp_path / "runs"):
    folder = experiment("fixed()")
    refuse(
      "sweep", folder, "--to", tmp_path / "runs", says=["another run", "is at work"]
    )
  assert not (tmp_path / "runs").exists()


def test_record_needs_every_arm(refuse, experiment, tmp_path):
  folder = experiment("fixed()")
  refuse(
    "sweep", folder, "--record", "--to", tmp_path / "runs", says=["1 arms are not"]
  )


def record(path, **losses):
  """A ledger of runs {name: losses of the seeds 0, 1, ...}."""
  arms = [
    {
      "name": f"{name}{seed}",
      "overrides": {"task.model.width": name, "seed": seed},
      "sha256": f"{name}{seed}",
      "status": "finished",
      "starts": 1,
      "secs": 1.0,
      "step": 1,
      "value": loss,
      "curve": [],
    }
    for name, values in losses.items()
    for seed, loss in enumerate(values)
  ]
  about = {"question": "?", "config": "C", "packages": {}, "python": "3", "cores": 2}
  about |= {"format": 1, "metric": "validation/loss", "arms": arms}
  ledger.write(path, about)
  return path


def test_recorded_rows_are_compared(call, tmp_path):
  path = record(tmp_path / "results.json", a=(1.0, 2.0, 3.0), b=(0.9, 1.9, 2.91))
  outcome = call("compare", f"{path}#width=a", f"{path}#width=b", "--json")
  assert outcome.code == 0 and "B is better" in outcome.out
  found = json.loads(outcome.out.splitlines()[-1])
  assert found["paired"] and found["difference"]["mean"] == pytest.approx(-0.29 / 3)
  backwards = call("compare", f"{path}#width=b", f"{path}#width=a")
  assert "A is better" in backwards.out


def test_no_difference_says_how_many_seeds_would_do(call, tmp_path):
  path = record(tmp_path / "results.json", a=(1.0, 2.0, 3.0), b=(0.9, 2.2, 2.7))
  outcome = call("compare", f"{path}#width=a", f"{path}#width=b")
  assert "no difference shown" in outcome.out and "pairs of seeds" in outcome.out


@pytest.mark.parametrize(
  "a, says", [("width=c", ["width=c"]), ("width=b", ["at least 2 seeds"])]
)
def test_bad_comparisons(refuse, tmp_path, a, says):
  path = record(tmp_path / "results.json", a=(1.0, 2.0), b=(1.0,))
  refuse("compare", f"{path}#{a}", f"{path}#width=a", says=says)


def arm(folder, seed, loss):
  """A run that has taken its 4 steps."""
  run = gen_jax.new("lm/pydoc:smoke", folder, {"seed": seed, "train.num_steps": 4})
  folder.mkdir()
  files.write_json(folder / "config.json", run.config)
  writers.JsonLines(folder, -1).write(4, {"validation/loss": loss})
  return folder


def test_arms_are_compared_by_their_folders_which_have_commas(call, refuse, tmp_path):
  """One that was killed is not compared with those at their ends."""
  names = ("peak=1,seed=0", "peak=1,seed=1", "peak=2,seed=0", "peak=2,seed=1")
  a, b, c, d = (arm(tmp_path / n, int(n[-1]), i) for i, n in enumerate(names))
  told = call("compare", f"{a},{b}", f"{c},{d}")
  assert told.code == 0 and "over 2 seeds" in told.out, told.err
  (d / "checkpoints/2").mkdir(parents=True)
  refuse("compare", f"{a},{b}", f"{c},{d}", says=["at step 2 of 4", "to its end"])
  refuse("compare", f"{a},{a}", f"{c},{d}", says=["two runs have one seed"])
  refuse("compare", f"{a},nowhere", f"{c}", says=["nowhere is not a workdir"])


def test_two_runs_are_compared_over_their_examples(call, refuse, tmp_path):
  """What their losses differ by, with the interval of the examples' own losses."""
  homes = [str(tmp_path / name) for name in "ab"]
  for home, rate in zip(homes, ("1e-3", "1e-2"), strict=True):
    words = ("--config", "lm/pydoc:smoke", "--workdir", home)
    assert not call("train", *words, f"--config.{RATE}={rate}").code
  outcome = call("compare", *homes, "--examples", "--json")
  assert "differ in optimizer.learning_rate.peak" in outcome.out
  found = json.loads(outcome.out.splitlines()[-1])
  losses = [gen_jax.open(home).evaluate()["validation/loss"] for home in homes]
  difference = found["difference"]
  assert difference["mean"] == pytest.approx(losses[1] - losses[0], abs=1e-5)
  assert difference["low"] < difference["mean"] < difference["high"]
  refuse("compare", *homes, says=["one run each", "--examples"])
  says = ["compares losses"]
  refuse("compare", *homes, "--examples", "--metric", "validation/accuracy", says=says)
  for changes in (
    {"data.length": 32},
    {"evaluators.validation.split": "train", "train.monitor": "train/loss"},
    {"evaluators.validation.max_batches": 2},
  ):
    other = str(tmp_path / next(iter(changes)))
    words = [f"--config.{key}={value}" for key, value in changes.items()]
    words += ["--config", "lm/pydoc:smoke", "--workdir", other]
    assert not call("train", *words, "--config.train.num_steps=2").code
    refuse("compare", homes[0], other, "--examples", says=["other examples"])


def test_an_edited_ledger_is_refused(refuse, tmp_path):
  path = record(tmp_path / "results.json", a=(1.0, 2.0))
  path.write_text(path.read_text().replace("1.0", "0.5"))
  refuse("compare", f"{path}#width=a", f"{path}#width=a", says=["damaged"])


def test_repro_needs_a_record(refuse, experiment):
  refuse("repro", experiment("fixed()"), says=["results.json is not there"])


SEARCH = """
from gen_jax.sweeps import log_uniform
def get_search():
  rate = log_uniform(1e-4, 1e-2)
  return {"optimizer.learning_rate.peak": rate, "train.num_steps": 8}
"""


@pytest.mark.long
def test_a_search_from_end_to_end(call, experiment, tmp_path):
  """Three real arms by halving; the best one on two seeds is recorded.

  In groups each arm comes to what it comes to in a process of its own.
  """
  folder, home = experiment("fixed()"), tmp_path / "runs"
  with (folder / "sweep.py").open("a") as file:
    file.write(SEARCH)
  (folder / "README.md").write_text("<!-- table -->\n<!-- end -->\n")
  words = ("sweep", folder, "--to", home, "--search", "halton", "--arms", "3")
  words = (*words, "--halving", "2", "--fresh", "2")
  assert "0 of 3 arms tried" in call(*words, "--list").out
  outcome = call(*words, "--together", "map")
  assert outcome.code == 0 and "3 of 3 arms tried" in outcome.out, outcome
  known = engine.states(home)
  assert [state.get("together") for state in known.values()].count("map") >= 4
  apart = [*words, "--together", "no", "--jobs", "2"]
  apart[apart.index("--to") + 1] = tmp_path / "apart"
  assert call(*apart).code == 0
  names = (home / searching.NAME, tmp_path / "apart" / searching.NAME)
  assert names[0].read_text() == names[1].read_text()  # values to the bit
  before = os.stat(home / engine.NAME).st_mtime_ns
  assert call(*words, "--record").code == 0
  assert os.stat(home / engine.NAME).st_mtime_ns == before
  found = ledger.read(folder / "results.json")
  assert [arm["overrides"]["seed"] for arm in found["arms"]] == [1, 2]
  assert ledger.table(found) in (folder / "README.md").read_text()
  assert "best 1/2 went on" in ledger.table(found)
  page = tmp_path / "page.html"
  results = folder / "results.json"
  assert call("report", "--sweep", results, "--out", page).code == 0
  whole = page.read_text()
  assert call("report", "--sweep", folder, "--out", page).code == 0  # no runs/NAME
  assert page.read_text() == whole
  again = call("repro", folder, "--to", home)  # its arms are there
  assert again.code == 0 and "is inside" in again.out
  best = found["search"]["arms"][found["search"]["best"]]
  assert f"{best['name']}. In the search it came to" in page.read_text()


@pytest.mark.long
@pytest.mark.parametrize(
  "place, flags", [("disk", ["--jobs", "2"]), ("bucket", ["--jobs", "1"])]
)
def test_a_sweep_from_end_to_end(request, call, experiment, tmp_path, place, flags):
  """Arms train once; the same command runs nothing again; the ledger is recorded."""
  folder = experiment(f"values('{RATE}', (1e-3, 2e-3))")
  in_bucket = place == "bucket"
  text = request.getfixturevalue("bucket") if in_bucket else str(tmp_path)
  home = files.path(text, "home") / "runs"
  (folder / "README.md").write_text("<!-- table -->\n<!-- end -->\n")
  outcome = call("sweep", folder, "--to", home, *flags)
  assert outcome.code == 0 and "2 arms: 2 finished" in outcome.out, outcome
  before = (home / engine.NAME).stat().st_mtime_ns
  assert any(path.read_bytes() for path in (home / engine.LOGS).iterdir())
  assert call("sweep", folder, "--to", home, "--record").code == 0
  assert (home / engine.NAME).stat().st_mtime_ns == before
  found = ledger.read(folder / "results.json")
  assert ledger.table(found) in (folder / "README.md").read_text()
  assert [arm["starts"] for arm in found["arms"]] == [1, 1]
  again = call("repro", folder, "--to", home)  # the arms are there: equal to the bit
  assert again.code == 2 and "at least 2 seeds" in again.err
  more = experiment(f"values('{RATE}', (1e-3, 2e-3, 4e-3))")
  assert "2 finished, 1 missing" in call("sweep", more, "--to", home, "--list").out
