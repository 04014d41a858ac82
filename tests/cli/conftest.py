"""Commands called in this process, and workdirs whose weights are all zero."""

import dataclasses
import pathlib
import shutil
from typing import NamedTuple

import jax
import numpy as np
import pytest

from gen_jax import experiment as experiments
from gen_jax.build import config_files
from gen_jax.build import overrides as overriding
from gen_jax.cli import main
from gen_jax.runs import workdir
from gen_jax.train import checkpoint, writers

ROOT = pathlib.Path(__file__).parents[2]


class Outcome(NamedTuple):
  """What a command left: its exit code, and both streams."""

  code: int
  out: str
  err: str


@pytest.fixture
def call(capfd, monkeypatch):
  """Calls `gen-jax ...` as if from the repository's root."""
  monkeypatch.chdir(ROOT)

  def run(*argv) -> Outcome:
    capfd.readouterr()
    code = 0
    try:
      main.main([str(word) for word in argv])
    except SystemExit as stop:
      code = stop.code
    return Outcome(code, *capfd.readouterr())

  return run


@pytest.fixture
def train_in_parts(call, tmp_path):
  """Trains four steps at once, and two and two: the losses are the same."""

  def run(train):
    for steps, name in ((4, "whole"), (2, "parts"), (4, "parts")):
      words = (f"--config.train.num_steps={steps}", "--workdir", tmp_path / name)
      outcome = call(*train(*words))
      assert outcome.code == 0, outcome.err
    whole, parts = (
      writers.read_metrics(tmp_path / name) for name in ("whole", "parts")
    )
    losses = [
      {row["step"]: row["loss"] for row in rows if "loss" in row}
      for rows in (whole, parts)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert any("validation/loss" in row for row in whole)

  return run


@pytest.fixture
def refuse(call):
  """Calls a command that must end with code 2 and one line that says all of `says`."""

  def run(*argv, says) -> None:
    outcome = call(*argv)
    assert outcome.code == 2, outcome
    (line,) = outcome.err.splitlines()
    assert line.startswith("gen-jax: error: ")
    for words in says:
      assert words in line

  return run


def _claim(path: pathlib.Path, file: str, *changes) -> experiments.Experiment:
  config = overriding.apply(config_files.load(f"{ROOT / file}:smoke"), changes)
  with workdir.claim(path, config):
    return experiments.make(config, path)


@pytest.fixture(scope="session")
def _text_workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "run"
  changes = {"num_layers": "1", "width": "8", "num_heads": "2"}.items()
  experiment = _claim(
    path, "configs/lm/pydoc.py", *((f"task.model.{k}", v) for k, v in changes)
  )
  save(path, experiment, ((0, 2.0), (2, 1.0)))
  return path


def save(path: pathlib.Path, experiment, steps, std: float = 0.0) -> None:
  """Checkpoints (step, value) of numbers from N(0, std^2): of zeros without it.

  Scales of norms are about 1, unless all is 0.
  """
  abstract = experiment.abstract_state(experiment.optimizer(1)[0])
  draw = np.random.default_rng(0)

  def numbers(path, x):
    centre = float(std > 0 and jax.tree_util.keystr(path).endswith("['scale']"))
    return draw.normal(centre, std, x.shape).astype(x.dtype)

  with checkpoint.open_manager(path) as manager:
    for step, value in steps:
      state = jax.tree_util.tree_map_with_path(
        lambda path, x: jax.device_put(numbers(path, x), x.sharding), abstract
      )
      state = dataclasses.replace(state, step=state.step * 0 + step)
      checkpoint.save(manager, step, state, checkpoint.Progress(value, step), value)


@pytest.fixture(scope="session")
def image_workdir(tmp_path_factory):
  """A diffusion run that has not come to a checkpoint."""
  path = tmp_path_factory.mktemp("images") / "run"
  _claim(path, "configs/diffusion/digits.py")
  return path


@pytest.fixture(scope="session")
def digits_workdir(tmp_path_factory):
  """A diffusion run whose weights are 0 at step 2."""
  path = tmp_path_factory.mktemp("digits") / "run"
  save(path, _claim(path, "configs/diffusion/digits.py"), [(2, 1.0)])
  return path


@pytest.fixture(scope="session")
def vae_workdir(tmp_path_factory):
  """An autoencoder of digits whose weights are 0 at step 2: it draws grey."""
  path = tmp_path_factory.mktemp("vae") / "run"
  save(path, _claim(path, "configs/vae/emoji.py"), [(2, 1.0)])
  return path


@pytest.fixture
def text_workdir(_text_workdir, tmp_path):
  """A language model's run with checkpoints at steps 0 and 2 (the best), to damage."""
  return shutil.copytree(_text_workdir, tmp_path / "run")
