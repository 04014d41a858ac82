"""Every config: its ':smoke' runs two steps, its full size has a consistent shape."""

import pathlib

import jax
import pytest

from gen_jax import experiment as experiments
from gen_jax import tree
from gen_jax.cli import config_args, main

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted(
  str(p.relative_to(ROOT))
  for p in (ROOT / "configs").glob("*/*.py")
  if p.name != "__init__.py"
)
# Closed forms: V D + L (12 D^2 + 2 D norms) + D for rotary, bias-free, tied models, ...
SIZES = {"configs/lm/pydoc.py": 1024 * 192 + 4 * (12 * 192**2 + 4 * 192) + 2 * 192}


@pytest.mark.parametrize("config", CONFIGS)
def test_smoke_runs_two_steps(config, tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
  words = ["train", "--config", f"{config}:smoke", "--workdir", str(tmp_path / "run")]
  result = main.run(words)
  assert result["reason"] == "finished" and result["step"] == 2
  assert result["loss"] > 0 and result["validation/loss"] > 0


@pytest.mark.parametrize("config", CONFIGS)
def test_full_size_builds_without_data(config, monkeypatch):
  monkeypatch.chdir(ROOT)
  blocks = config_args.load(config)
  blocks["mesh"] = {"data": 1, "fsdp": 1, "tensor": 1, "rules": "fsdp"}
  with monkeypatch.context() as m:
    m.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    experiment = experiments.make(blocks, None)
  optimizer, rate = experiment.optimizer(experiment.train.num_steps)
  state = experiment.abstract_state(optimizer)
  assert tree.size(state.params) == SIZES.get(config, tree.size(state.params))
  assert rate(experiment.train.num_steps // 2) > 0
  assert (state.ema is None) == (experiment.train.ema_decay is None)
