"""Runs of one structure share their compiled programs, whatever their numbers are."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# `gen-jax`, then how often a program was looked up on disk, and how often in vain.
COUNTED = """
import json, sys
import jax
from gen_jax.cli import main
seen = []
jax.monitoring.register_event_listener(lambda name, **_: seen.append(name))
main.run(sys.argv[1:])
names = ("cache_hits", "cache_misses")
print(json.dumps([seen.count(f"/jax/compilation_cache/{name}") for name in names]))
"""


def train(tmp_path, name, **overrides):
  """(hits, misses) of a run of its own process."""
  words = ["train", "--config", "configs/lm/pydoc.py:smoke"]
  words += ["--workdir", str(tmp_path / name)]
  words += [f"--config.{key}={value}" for key, value in overrides.items()]
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  }
  command = [sys.executable, "-c", COUNTED, *words]
  out = subprocess.run(
    command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
  )
  return json.loads(out.stdout.splitlines()[-1])


@pytest.mark.long
def test_a_second_process_with_other_numbers_compiles_nothing(tmp_path):
  common = {"task.model.dropout": 0.1, "task.z_loss": 1e-3, "train.ema_decay": 0.9}
  hits, misses = train(tmp_path, "first", **common)
  assert misses > 10 >= hits
  others = {
    "task.model.dropout": 0.3,
    "task.z_loss": 1e-2,
    "train.ema_decay": 0.99,
    "optimizer.learning_rate.peak": 1e-3,
    "optimizer.learning_rate.warmup_steps": 7,
    "optimizer.learning_rate.final_fraction": 0.2,
    "optimizer.b1": 0.8,
    "optimizer.b2": 0.99,
    "optimizer.eps": 1e-6,
    "optimizer.weight_decay": 0.2,
    "optimizer.clip_norm": 0.5,
    "seed": 1,
  }
  again, missed = train(tmp_path, "second", **others)
  assert missed == 0 and again == hits + misses
