"""A figure shows the means and intervals of its ledger, and knows whose it is."""

import pytest
from PIL import Image

from gen_jax.sweeps import figure, ledger, statistics, sweep
from gen_jax.system import files
from gen_jax.types import InputError

PEAK = "optimizer.learning_rate.peak"


def arm(name, peak, seed, end, status="finished"):
  """Falls from 9 at step 0 to `end` at step 20."""
  curve = [[0, 9.0], [10, end + 1.0], [20, end]]
  overrides = {"optimizer.name": name, PEAK: peak, "seed": seed, "train.num_steps": 20}
  value = end if status == "finished" else None
  return {"overrides": overrides, "status": status, "value": value, "curve": curve}


ARMS = [
  *(arm("adamw", 1e-3, seed, 2.0 + 0.1 * seed) for seed in range(3)),
  *(arm("adamw", 2e-3, seed, 1.0 + 0.2 * seed) for seed in range(3)),
  *(arm("muon", 2e-3, seed, 0.5) for seed in range(2)),
  arm("muon", 2e-3, 2, 7.0, status="diverged"),
]
LEDGER = {"question": "which?", "metric": "validation/loss", "arms": ARMS}


def test_along_steps_every_config_is_a_line():
  found = figure.lines(LEDGER)
  assert list(found) == [
    "name=adamw,peak=0.001",
    "name=adamw,peak=0.002",
    "name=muon,peak=0.002",
  ]
  first = found["name=adamw,peak=0.001"]
  assert first.x == [10, 20]
  assert first.intervals[1] == statistics.over_seeds([2.0, 2.1, 2.2])
  assert first.intervals[0].mean == pytest.approx(3.1)
  assert [i.num for i in found["name=muon,peak=0.002"].intervals] == [2, 2]


def test_along_a_key_the_others_are_lines_and_diverged_runs_are_none():
  found = figure.lines(LEDGER, PEAK)
  assert list(found) == ["name=adamw", "name=muon"]
  assert found["name=adamw"].x == ["0.001", "0.002"]
  wanted = statistics.over_seeds([1.0, 1.2, 1.4])
  assert found["name=adamw"].intervals[1] == wanted
  assert found["name=muon"].x == ["0.002"]
  assert found["name=muon"].intervals[0].mean == 0.5


@pytest.mark.parametrize(
  "metric, ends, wide",
  [
    ("frechet", (0.5, 5.1), True),
    ("frechet", (0.5, 4.9), False),
    ("accuracy", (0.01, 1.0), False),
    ("loss", (-1.0, 30.0), False),
  ],
)
def test_the_axis_is_a_logs_where_distances_span_more_than_ten_times(
  metric, ends, wide
):
  lines = {"": figure.Line([1, 2], [[end] for end in ends])}
  assert figure.is_wide(lines, metric) is wide


def test_one_seed_has_no_band():
  alone = {**LEDGER, "arms": ARMS[:1]}
  assert figure.lines(alone, PEAK)[""].intervals == [(2.0, 2.0, 2.0, 1, 0.95)]


SWEEP = f'''"""which?"""
from gen_jax.sweeps import product, values
CONFIG, METRIC, X_AXIS = "configs/lm/pydoc.py:smoke", "validation/loss", "{{}}"
def get_sweep():
  return product(values("{PEAK}", (1e-3, 2e-3)), values("seed", range(2)))
'''


def test_a_figure_names_its_ledger_and_needs_nothing_else(tmp_path):
  (tmp_path / sweep.FILE).write_text(SWEEP.format(PEAK))
  loaded = sweep.load(tmp_path)
  sweep.record(tmp_path, {"format": ledger.FORMAT, **LEDGER}, loaded.x_axis)
  recorded = ledger.read(tmp_path / sweep.RESULTS)
  assert recorded["arms"] == ARMS
  path = tmp_path / figure.FILE
  assert figure.source(path) == files.value_sha256(recorded)
  assert path.read_bytes() == figure.png(recorded, PEAK)
  assert figure.png(recorded, PEAK) != figure.png(recorded)


def test_an_axis_that_does_not_vary_is_refused(tmp_path):
  (tmp_path / sweep.FILE).write_text(SWEEP.format("optimizer.learning_rate.peek"))
  with pytest.raises(
    InputError, match=r"X_AXIS .*did you mean 'optimizer.learning_rate"
  ):
    sweep.load(tmp_path)


def test_a_further_metric_is_a_part_of_the_figure(tmp_path):
  one = {"also": {"validation/accuracy": {"value": 0.5, "curve": [[20, 0.5]]}}}
  both = {**LEDGER, "also": ["validation/accuracy"], "arms": [a | one for a in ARMS]}
  (tmp_path / "a.png").write_bytes(figure.png(both))
  (tmp_path / "b.png").write_bytes(figure.png(LEDGER))
  wide, narrow = (Image.open(tmp_path / name).size for name in ("a.png", "b.png"))
  assert wide[0] > narrow[0] and wide[1] == narrow[1]


SETTINGS = '''"""which?"""
from configs.diffusion import digits
from gen_jax.sweeps import product, values
METRIC, ALSO, X_AXIS = "pixels_8/frechet", ("pixels_8/recall",), "scale"
CONFIG = __file__
def get_config(arg):
  config = digits.get_config("smoke")
  pairs = tuple((f"scale={s}", {"guidance_scale": s}) for s in (1.0, 2.0))
  block = {"name": "sampling_sweep", "every": 0, "settings": pairs, "of": ("a",)}
  config.evaluators["scales"] = block
  return config
def get_sweep():
  return product(values("optimizer.b1", (0.8, 0.9)), values("seed", range(2)))
'''


def test_settings_are_an_axis_and_a_row_of_one_is_run_by_its_arms(tmp_path):
  (tmp_path / sweep.FILE).write_text(SETTINGS)
  loaded = sweep.load(tmp_path)
  assert (loaded.x_axis, loaded.also) == ("scale", ("pixels_8/recall",))
  some = loaded.only({"optimizer.b1": 0.8, "scale": 2.0})
  assert [arm.overrides["seed"] for arm in some.arms] == [0, 1]
  assert {arm.overrides["optimizer.b1"] for arm in some.arms} == {0.8}
  with pytest.raises(InputError, match="has no arm"):
    loaded.only({"optimizer.b1": 0.7, "scale": 2.0})
  (tmp_path / sweep.FILE).write_text(SETTINGS.replace('"scale"\n', '"scales"\n'))
  with pytest.raises(InputError, match=r"X_AXIS .*did you mean 'scale'"):
    sweep.load(tmp_path)
  (tmp_path / sweep.FILE).write_text(SETTINGS.replace("recall", "recal"))
  with pytest.raises(InputError, match="pixels_8/recal': it is not known"):
    sweep.load(tmp_path)
