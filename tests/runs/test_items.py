"""A run holds the weights that it works in: of its autoencoder, and of its base."""

import json
import shutil

import numpy as np
import pytest

import gen_jax
from gen_jax import experiment as experiments
from gen_jax import tree
from gen_jax.build import config_files
from gen_jax.data import latents
from gen_jax.runs import weights as weighing
from gen_jax.runs import workdir
from gen_jax.system import files
from gen_jax.train import items
from gen_jax.types import InputError
from tests.cli import conftest
from tests.runs import conftest as old

pytestmark = pytest.mark.usefixtures("one_device")
ROOT = conftest.ROOT
MOMENTS = {"mean": [0.25, -1.5], "std": [1.0, 0.5]}


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
  """An autoencoder of random weights, its latents as if measured."""
  path = tmp_path_factory.mktemp("vae") / "run"
  changes = [("task.autoencoder.latent_channels", "2")]
  made = conftest._claim(path, "configs/vae/emoji.py", *changes)
  conftest.save(path, made, [(2, 1.0)], std=0.1)
  own = gen_jax.open(path).weights("2").params["autoencoder"]
  notes = {"sha256": tree.sha256(own), "step": 2, "weights": "ema", **MOMENTS}
  workdir.write_sealed(path / latents.NAME, notes)
  return path


@pytest.fixture(scope="module")
def trained(vae, tmp_path_factory):
  """Two steps of diffusion on its latents."""
  path = tmp_path_factory.mktemp("ldm") / "run"
  block = workdir.read_config(vae)["task"]["autoencoder"]
  codec = {"name": "latent", "autoencoder": block, "workdir": str(vae)}
  changes = {
    "task.codec": repr(codec),
    "task.network.image_channels": "2",
    "task.network.multipliers": "(1,)",
    "task.network.width": "16",
    "train.save_every": "1",
    "train.keep": "9",
    "evaluators": "{}",
  }
  config = config_files.load(f"{ROOT}/configs/diffusion/digits.py:smoke")
  run = gen_jax.new(config, path, changes)
  assert run.train()["step"] == 2
  return run.workdir


def state(run, which="latest"):
  found = gen_jax.open(run).state(which)
  return tree.sha256((found.params, found.ema, found.opt_state))


@pytest.mark.long
def test_its_autoencoder_is_an_item_and_no_workdir(vae, trained, tmp_path):
  """With its hash and statistics; where it was learned may go."""
  assert list(trained.rglob("config.json")) == [trained / "config.json"]
  own = gen_jax.open(vae).weights("2").params["autoencoder"]
  gone = {"task.codec.workdir": str(tmp_path / "gone")}
  opened = gen_jax.open(trained, gone)
  frozen = opened.weights("latest").frozen
  assert tree.sha256(frozen["autoencoder"]) == tree.sha256(own)
  for name, values in MOMENTS.items():
    np.testing.assert_array_equal(frozen[name], np.float32(values))
  abstract = opened.experiment.frozen["autoencoder"]
  _, about = items.restore(trained, workdir.AUTOENCODER, abstract)
  assert about["sha256"] == tree.sha256(own)
  block = opened.config["task"]["codec"]["autoencoder"]
  assert about["autoencoder"] == json.loads(json.dumps(block))  # tuples are lists


@pytest.mark.long
def test_training_goes_on_and_does_not_write_it_again(trained, tmp_path):
  copy = shutil.copytree(trained, tmp_path / "run")
  folder = items.home(copy) / workdir.AUTOENCODER
  stamps = lambda: files.stamps([folder / n for n in files.names(folder)])  # noqa: E731
  before, whole = stamps(), state(copy)
  shutil.rmtree(items.home(copy) / "2")
  assert gen_jax.open(copy).train()["step"] == 2
  assert stamps() == before and state(copy) == whole


@pytest.mark.long
def test_a_workdir_in_a_workdir_still_opens(trained, tmp_path):
  """As earlier versions left it: the same images; it trains on to the same bits."""
  draw = lambda run: gen_jax.open(run).generate("seven", 2, which="latest")  # noqa: E731
  know = lambda run: gen_jax.open(run).weights("latest").provenance()  # noqa: E731
  copy = shutil.copytree(trained, tmp_path / "run")
  home = old.autoencoder_in_a_workdir(copy)
  assert not items.exists(copy, workdir.AUTOENCODER) and home.is_dir()
  assert know(copy) == know(trained)
  np.testing.assert_array_equal(draw(copy), draw(trained))
  whole = state(copy)
  shutil.rmtree(items.home(copy) / "2")
  assert gen_jax.open(copy).train()["step"] == 2
  assert state(copy) == whole
  path = next((home / "checkpoints" / "0").rglob("*manifest*"))
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(InputError, match=f"{home}/checkpoints can be read"):
    gen_jax.open(copy).weights("latest")


@pytest.mark.parametrize("is_older", [False, True])
def test_fine_tuning_takes_it_over(is_older, trained, tmp_path):
  source = shutil.copytree(trained, tmp_path / "source")
  if is_older:
    old.autoencoder_in_a_workdir(source)
  config = config_files.load(f"{ROOT}/configs/diffusion/finetune.py:full")
  start = [("init_from.workdir", str(source)), ("data.batch_size", "8")]
  config = workdir.inherit_task(config, start, None)
  assert config["task"]["codec"]["workdir"] == str(source)
  made = experiments.make(workdir.read_config(trained), None)
  made.config["task"]["codec"]["workdir"] = str(source)
  (tmp_path / "run").mkdir()
  frozen = weighing.load_frozen(made, tmp_path / "run")
  want = gen_jax.open(trained).weights("latest").frozen
  assert tree.sha256(frozen) == tree.sha256(want)
  shutil.rmtree(source)
  frozen = weighing.load_frozen(made, tmp_path / "run")
  assert tree.sha256(frozen) == tree.sha256(want)


def test_a_damaged_one_is_named(trained, tmp_path, refuse):
  copy = shutil.copytree(trained, tmp_path / "run")
  path = next((items.home(copy) / workdir.AUTOENCODER / "state").rglob("*manifest*"))
  path.write_bytes(path.read_bytes()[:-1])
  says = ["checkpoints/autoencoder cannot be read", "not as it was written", "a copy"]
  refuse("sample", "--workdir", copy, says=says)


def test_an_untrained_run_with_an_item_belongs_to_nobody(trained, tmp_path):
  copy = shutil.copytree(trained, tmp_path / "run")
  config = {**workdir.read_config(copy), "seed": 7}
  with pytest.raises(InputError, match="belongs to another config"):
    workdir.check_owner(copy, config)
  for step in (1, 2):
    shutil.rmtree(items.home(copy) / str(step))
  (items.home(copy) / "base.orbax-checkpoint-tmp").mkdir()
  with workdir.claim(copy, config):
    assert not items.home(copy).exists()  # another config may have another autoencoder


def test_a_run_is_opened_by_building_one_experiment(
  trained, _text_workdir, tmp_path, monkeypatch
):
  """Neither its autoencoder nor the run that it started from is built as a run."""
  start = {"init_from.workdir": str(_text_workdir), "adapter": "lora"}
  changes = {"task.model.num_layers": "1", "task.model.width": "8"}
  changes |= {"task.model.num_heads": "2", "evaluators": "{}", **start}
  for name in ("a", "b"):  # adapters on adapters
    run = gen_jax.new(f"{ROOT}/configs/lm/pydoc.py:smoke", tmp_path / name, changes)
    assert run.train()["step"] == 2
    changes["init_from.workdir"] = str(tmp_path / name)
  made, make = [], experiments.make
  counted = lambda *args: made.append(args) or make(*args)  # noqa: E731
  monkeypatch.setattr(experiments, "make", counted)
  for run in (trained, tmp_path / "b"):
    gen_jax.open(run).weights("latest")
  assert len(made) == 2
  old.base_by_its_hash(tmp_path / "b")  # and by its source
  gen_jax.open(tmp_path / "b").weights("latest")
  assert len(made) == 3
