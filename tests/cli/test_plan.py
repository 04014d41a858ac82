"""`gen-jax plan`: its data, its refusals, its search."""

import importlib.metadata
import itertools
import json

import pytest

from gen_jax.cost import chips
from gen_jax.sweeps import ladder, ledger, scaling

SMOKE = "configs/lm/pydoc.py:smoke"


def test_a_plan_is_data(call):
  outcome = call(
    *("plan", "--config", "configs/lm/pydoc.py:smoke", "--topology", "v5litepod-4"),
    *("--price", "2", "--tokens", "1e6", "--quick", "--mfu", "0.01", "--json"),
  )
  assert outcome.code == 0, outcome.err
  found = json.loads(outcome.out.splitlines()[-1])
  keys = (
    "params peak_hbm_bytes hbm_capacity_bytes fits model_flops hardware_flops hbm_bytes"
    " collectives step_secs_bound bound_by mfu_bound cost"
  )
  assert set(keys.split()) <= set(found)
  assert found["fits"] and found["num_chips"] == 4
  forecast = found["forecast"]["step_secs"]
  assert forecast == pytest.approx(found["step_secs_bound"] * found["mfu_bound"] / 0.01)
  tokens = 8 * 16
  cost = found["cost"]
  assert cost["num_steps"] == -(-(10**6) // tokens)
  secs = cost["num_steps"] * found["step_secs_bound"]
  assert cost["usd"] == pytest.approx(2 * 4 * secs / 3600)
  assert found["items_per_sec_bound"] == pytest.approx(
    tokens / found["step_secs_bound"]
  )


def test_a_forecast_by_formula_for_gpus(call):
  """FLOPs a step / (MFU x GPUs x peak), without a compiler; --price has no default."""
  outcome = call(
    *("plan", "--config", "configs/lm/pydoc.py:smoke", "--topology", "a100:8"),
    *("--mfu", "0.5", "--tokens", "1e6", "--price", "4", "--json"),
    "--config.mesh.fsdp=8",
  )
  assert outcome.code == 0, outcome.err
  found = json.loads(outcome.out.splitlines()[-1])
  secs = found["model_flops"] / (0.5 * 8 * 312e12)
  assert found["forecast"]["step_secs"] == pytest.approx(secs)
  steps = -(-(10**6) // (8 * 16))
  usd = steps * secs * 8 / 3600 * 4
  assert found["forecast"]["cost"]["usd"] == pytest.approx(usd)


@pytest.mark.parametrize(
  "words, parts",
  [
    (["--topology", "a100:8"], ["a100:8", "--mfu"]),
    (["--topology", "a100:8x8", "--mfu", "0.4"], ["a100:8x8", "a100:8"]),
    (["--topology", "v5e:2x2", "--mfu", "40"], ["--mfu=40", "(0, 1]"]),
    (["--topology", "v5litepod-15"], ["v5litepod-15", "v5litepod-16"]),
    (["--topology", "v9:2x4"], ["'v9'", "v5e", "v5p"]),
    (["--topology", "v5e"], ["'v5e'", "v5e:2x4"]),
    (["--topology", "v5e:3x5"], ["'v5e:3x5'", "v5e:4x4"]),
    (["--topology", "v5e:2x4", "--config.mesh.fsdp=3"], ["fsdp=3", "8 device(s)"]),
    (
      [
        *("--topology", "v5e:2x4", "--config.mesh.data=1", "--config.mesh.tensor=8"),
        "--config.mesh.rules=fsdp_tensor",
      ],
      ["heads", "size 4", "tensor=8"],
    ),
    (["--topology", "v5e:2x4", "--images", "5"], ["tokens", "--tokens"]),
    (["--topology", "v5e:2x4", "--search", "--limit", "0"], ["--limit=0"]),
    (["--topology", "v5e:2x4", "--price", "-1"], ["--price=-1"]),
    (["--topology", "a100:8", "--mfu", "0.4", "--tokens", "inf"], ["--tokens=inf"]),
    (["--topology", "v5e:2x4", "--figure", "a.png"], ["--figure", "--search"]),
    (
      ["--topology", "v5e:2x4", "--scaling", "r.json", "--compare", "lm/pydoc"],
      ["--scaling is of one config", "--compare"],
    ),
  ],
)
def test_what_cannot_be_is_said_in_a_line(call, words, parts):
  outcome = call("plan", "--config", "configs/lm/pydoc.py:smoke", *words)
  assert outcome.code == 2
  assert all(part in outcome.err for part in parts), outcome.err
  assert outcome.err.count("\n") == 1


def test_out_of_memory_says_by_how_much_and_what_would_fit(call):
  outcome = call(
    *("plan", "--config", "configs/lm/pydoc.py:smoke", "--topology", "v5e:1x1"),
    *("--config.task.model.width=16384", "--config.task.model.num_heads=64"),
  )
  assert outcome.code == 2
  assert all(x in outcome.err for x in ("out of memory", "GiB more", "devices"))
  assert outcome.err.count("\n") == 1


def nothing(name):
  raise importlib.metadata.PackageNotFoundError(name)


@pytest.mark.parametrize(
  "version, part", [(nothing, "none is installed"), (lambda name: "0.0.1", "0.0.1 is")]
)
def test_without_the_right_libtpu_a_plan_says_which(call, monkeypatch, version, part):
  monkeypatch.setattr(chips.importlib.metadata, "version", version)
  outcome = call(
    "plan", "--config", "configs/lm/pydoc.py:smoke", "--topology", "v5e:2x4"
  )
  assert outcome.code == 2 and outcome.err.count("\n") == 1
  assert part in outcome.err and "pip install 'libtpu==" in outcome.err


@pytest.fixture(scope="module")
def results(tmp_path_factory):
  """A ladder whose losses are those of a planted surface."""
  truth, arms = scaling.Surface(1.0, 20.0, 40.0, 0.4, 0.3), []
  for width, num_steps in itertools.product((16, 32, 64), (100, 400, 1_600)):
    overrides = {"task.model.width": width, "train.num_steps": num_steps}
    params, items, _ = ladder.measure(SMOKE, overrides)
    arms += [
      {"name": f"{width}-{num_steps}-{seed}", "overrides": {**overrides, "seed": seed},
       "status": "finished", "value": truth(params, items) + 1e-4 * seed, "curve": []}
      for seed in (-1, 1)
    ]  # fmt: skip
  about = {"format": 1, "question": "?", "config": SMOKE, "metric": "validation/loss"}
  path = tmp_path_factory.mktemp("ladder") / "results.json"
  ledger.write(path, {**about, "arms": arms})
  return path, truth


@pytest.mark.long
def test_a_ladder_of_runs_says_what_loss_to_expect(call, results):
  path, truth = results
  words = ("--topology", "a100:8", "--mfu", "0.4", "--tokens", "1e7", "--json")
  outcome = call("plan", "--config", SMOKE, *words, "--scaling", path)
  assert outcome.code == 0, outcome.err
  found = json.loads(outcome.out.splitlines()[-1])["expected"]
  items = -(-(10**7) // 128) * 128
  assert found["items"] == items and found["params"] > 300 * 32
  assert found["interval"]["mean"] == pytest.approx(
    truth(found["params"], items), rel=0.01
  )
  assert found["interval"]["low"] < found["interval"]["mean"]
  assert found["best"]["loss"] <= found["interval"]["mean"]
  assert "expected validation/loss" in outcome.out


@pytest.mark.long
def test_losses_on_other_data_are_not_expected(call, results):
  words = ("--topology", "a100:8", "--mfu", "0.4", "--scaling", results[0])
  outcome = call("plan", "--config", SMOKE, *words, "--config.data.length=8")
  assert outcome.code == 2 and "data.length is 8" in outcome.err


@pytest.mark.long
def test_search_ranks_what_fits_and_draws_it(call, tmp_path):
  outcome = call(
    *("plan", "--config", "configs/lm/pydoc.py:smoke", "--topology", "v5e:2x2"),
    *("--search", "--limit", "2", "--figure", tmp_path / "plans.png", "--quick"),
    "--json",
  )
  assert outcome.code == 0, outcome.err
  found = json.loads(outcome.out.splitlines()[-1])
  assert found["tried"] == 2 < found["of"]
  bounds = [row["step_secs_bound"] for row in found["plans"]]
  assert bounds == sorted(bounds) and len(bounds) == 2
  assert (tmp_path / "plans.png").stat().st_size > 1000
