"""From a model of images to one of instructions, and an edit by it, by command."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import gen_jax
from gen_jax.data.shapes import source
from gen_jax.nn import linear
from tests.cli import conftest

pytestmark = pytest.mark.usefixtures("one_device")
BASE = "configs/diffusion/shapes.py"
CONFIG = "configs/diffusion/shapes_edit.py:smoke"
SMALL = {"task.network.multipliers": (1,), "task.network.attention_levels": ()}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """A model of the same images without a condition: random weights at step 2."""
  path = tmp_path_factory.mktemp("base") / "run"
  experiment = conftest._claim(
    path,
    BASE,
    ("data.source", '{"name": "shapes", "num": 64, "side": 16}'),
    ("data.image_size", "16"),
    ("data.channels", "3"),
    ("task.network.image_channels", "3"),
    *((key, str(value)) for key, value in SMALL.items()),
  )
  conftest.save(path, experiment, [(2, 1.0)], std=0.1)
  return path


@pytest.fixture(scope="module")
def image(tmp_path_factory):
  """The first image of the validation split, on disk."""
  path = tmp_path_factory.mktemp("images") / "before.png"
  pair = source.Shapes(num=64, num_validation=8, side=16).edits("validation")[0]
  Image.fromarray(pair["before"]).save(path)
  return path, pair


@pytest.mark.long
def test_an_instruction_model_starts_as_its_base_and_edits(base, image, tmp_path, call):
  path, pair = image
  start = f"--config.init_from.workdir={base}"
  still = "--config.optimizer.learning_rate.peak=0.0"
  home = tmp_path / "edit"
  small = [f"--config.{key}={value}" for key, value in SMALL.items()]
  outcome = call("train", "--config", CONFIG, "--workdir", home, start, still, *small)
  assert outcome.code == 0, outcome
  got = gen_jax.open(home).weights("latest", "params").params
  wanted = gen_jax.open(base).weights("latest").params
  wanted = {**wanted, "unet": linear.widen(wanted["unet"], "conv_in", 3)}
  jax.tree.map(np.testing.assert_array_equal, got, wanted)

  words = ("edit", "--workdir", home, "--image", path, "--prompt", pair["caption"])
  outcome = call(*words, "--num", 2, "--image_guidance_scale", 1.2)
  assert outcome.code == 0, outcome
  assert len(list((home / "edits").glob("*_0_?.png"))) == 2
  how = json.loads((home / "edits" / "prompts.json").read_text())
  assert how["strength"] == 1.0 and how["image_guidance_scale"] == 1.2
  with Image.open(home / "edits" / "before_after.png") as shown:
    assert shown.width > 3 * 16 * 4


@pytest.mark.parametrize(
  "change, says",
  [
    ("task.network.extra_channels=0", "extra_channels=0 must equal those of task.cond"),
    ("task.condition=None", "condition_drop_prob=0.1 must be 0 without a condition"),
    ("data.name=images", "set data.name=edits"),
    ("data.source=digits", "data.source gives no edits; those that do: shapes, edits"),
  ],
)
def test_what_does_not_fit_is_refused(change, says, tmp_path, refuse):
  words = ("train", "--config", CONFIG, "--workdir", tmp_path / "x")
  refuse(*words, f"--config.{change}", says=[says])
  assert not (tmp_path / "x").exists()


def test_extra_channels_need_a_condition(tmp_path, refuse):
  words = ("train", "--config", f"{BASE}:smoke", "--workdir", tmp_path / "x")
  says = ["extra_channels=2 needs task.condition: instruction or inpainting"]
  refuse(*words, "--config.task.network.extra_channels=2", says=says)
