"""Commands and workdirs, as tests/cli has them, and as earlier versions left them."""

import json
import pathlib
import shutil

import gen_jax
from gen_jax.data import latents
from gen_jax.runs import workdir
from gen_jax.train import checkpoint, items
from gen_jax.train import state as states
from tests.cli import conftest

call, refuse = conftest.call, conftest.refuse
_text_workdir, text_workdir = conftest._text_workdir, conftest.text_workdir
digits_workdir, image_workdir = conftest.digits_workdir, conftest.image_workdir
vae_workdir = conftest.vae_workdir


def autoencoder_in_a_workdir(run: pathlib.Path) -> pathlib.Path:
  """Puts a run's autoencoder where earlier versions kept it: in a workdir in it."""
  opened = gen_jax.open(run)
  abstract = opened.experiment.frozen["autoencoder"]
  weights, about = items.restore(run, workdir.AUTOENCODER, abstract)
  shutil.rmtree(items.home(run) / workdir.AUTOENCODER)
  home, block = run / workdir.AUTOENCODER, about.pop("autoencoder")
  home.mkdir()
  task = {"name": "autoencoder", "autoencoder": block}
  train = {**opened.config["train"], "ema_decay": None}
  workdir.write_config(home, {**opened.config, "task": task, "train": train})
  statistics = {**about, "step": 0, "weights": "raw"}
  workdir.write_sealed(home / latents.NAME, statistics)
  with checkpoint.open_manager(home) as manager:
    state = states.of_weights({"autoencoder": weights})
    checkpoint.save(manager, 0, state, checkpoint.Progress())
  return home


def base_by_its_hash(run: pathlib.Path) -> pathlib.Path:
  """Leaves of a run's base what earlier versions kept: where it is, and its hash."""
  folder = items.home(run) / "base"
  about = json.loads((folder / "about" / "metadata").read_text())
  shutil.rmtree(folder)
  workdir.write_sealed(run / "init_from.json", about)
  return run / "init_from.json"
