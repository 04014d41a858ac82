"""A run that is killed and started again ends bit for bit like one that is not."""

import os
import pathlib
import random
import signal
import subprocess
import sys

import pytest

from gen_jax.cli import main
from gen_jax.train import writers

ROOT = pathlib.Path(__file__).parents[2]


def command(*words):
  return [sys.executable, "-m", "gen_jax.cli.main", *words]


def environment(tmp_path):
  return {**os.environ, "TFDS_DATA_DIR": str(tmp_path / "data"), "JAX_PLATFORMS": "cpu"}


CONFIGS = {
  "configs/lm/pydoc.py": (),
  # One resolution less: compiling is what this test waits for.
  "configs/diffusion/digits.py": ("--config.task.network.multipliers=(1,)",),
}


def train_words(config, workdir):
  return command(
    "train",
    "--config",
    f"{config}:smoke",
    "--workdir",
    str(workdir),
    "--config.train.num_steps=12",
    "--config.train.save_every=3",
    "--config.train.ema_decay=0.9",
    *CONFIGS[config],
  )


def hashes(workdir):
  """By this process, with other devices: of the same bytes they are the same."""
  return main.run(["inspect", "--workdir", str(workdir)])


def kill_at(words, env, step):
  """Starts a run and sends SIGKILL when it reports `step`."""
  with subprocess.Popen(
    words, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, bufsize=1
  ) as process:
    for line in process.stdout:
      if line.startswith(f"step {step}/"):
        process.send_signal(signal.SIGKILL)
        break
    else:
      raise AssertionError(f"the run ended before step {step}")
  assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
  "config",
  [
    "configs/lm/pydoc.py",
    pytest.param("configs/diffusion/digits.py", marks=pytest.mark.long),
  ],
)
def test_killed_and_resumed_equals_uninterrupted(config, tmp_path):
  env = environment(tmp_path)
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  subprocess.run(train_words(config, whole), cwd=ROOT, env=env, check=True)
  broken.mkdir()  # as a kill between the first evaluation and checkpoint 0 leaves it
  (broken / "metrics.jsonl").write_text('{"step": 0, "loss": 1.0}\n')
  step = random.randrange(4, 12)
  print(f"killing at step {step}")
  kill_at(train_words(config, broken), env, step)
  resumed = subprocess.run(
    train_words(config, broken),
    cwd=ROOT,
    env=env,
    check=True,
    capture_output=True,
    text=True,
  )
  assert "resuming" in resumed.stdout
  a, b = hashes(whole), hashes(broken)
  assert a["step"] == b["step"] == 12
  assert set(a["sha256"]) == {"params", "ema", "opt_state"}
  assert a["sha256"] == b["sha256"], f"killed at step {step}"
  rows = [writers.read_metrics(w) for w in (whole, broken)]
  first, again = ([row for row in found if row["step"] == 0] for found in rows)
  assert first == again and first
