"""Models of classes and of nothing, by command: trained, sampled, opened in Python."""

import json

import numpy as np
import pytest

import gen_jax
from tests.cli import conftest

pytestmark = pytest.mark.usefixtures("one_device")
DIT = "configs/diffusion/dit.py:smoke"
DDPM = "configs/diffusion/ddpm_cifar10.py:smoke"


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
  """Random weights: after few steps the output would still be near zero."""
  home = tmp_path_factory.mktemp("classes") / "run"
  experiment = conftest._claim(home, DIT.removesuffix(":smoke"))
  conftest.save(home, experiment, [(2, 1.0)], std=0.2)
  return home


def test_a_class_is_asked_for_by_name_number_or_caption(classes, call):
  """All three give the same images, and another class or none gives others."""
  assert not (classes / "tokenizer").exists()
  run = gen_jax.open(classes)
  same = [run.generate(p, num=2, seed=3) for p in ("seven", "7", "the digit Seven")]
  assert same[0].shape == (2, 8, 8, 1)
  for found in same[1:]:
    np.testing.assert_array_equal(found, same[0])
  for other in ("six", ""):
    assert (run.generate(other, num=2, seed=3) != same[0]).any()
  outcome = call(
    "sample", "--workdir", classes, "--prompt", "seven", "--prompt", "3", "--json"
  )
  assert outcome.code == 0, outcome
  samples = json.loads(outcome.out.splitlines()[-1])["samples"]
  assert [sample["prompt"] for sample in samples] == ["seven", "3"]


def test_what_names_no_class_is_refused(classes, refuse):
  words = ("sample", "--workdir", classes, "--prompt", "sevn")
  refuse(*words, says=["'sevn' names no class", "the nearest is 'seven'"])


@pytest.mark.parametrize(
  "change, says",
  [
    ("task.conditioning.num_classes=11", ["num_classes=11", "must equal", "10"]),
    ("task.conditioning=text", ["needs text_encoder"]),
    ("data.tokenizer=bytes", ["data.tokenizer", "does not read"]),
    ("data.source=shapes", ["knows no classes", "digits"]),
    ("task.network.image_channels=3", ["task.network.image_channels=3"]),
    ("data.image_size=7", ["sides divisible by it, got 7x7"]),
  ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
  change, says, refuse, tmp_path
):
  home = tmp_path / "run"
  refuse("train", "--config", DIT, "--workdir", home, f"--config.{change}", says=says)
  assert not home.exists()


@pytest.mark.long
def test_an_unconditional_model_takes_no_prompt(tmp_path, refuse):
  home = tmp_path / "run"
  run = gen_jax.new(DDPM, home)
  run.train()
  assert not (home / "tokenizer").exists()
  assert run.weights().params.keys() == {"unet"}
  assert run.generate(num=2).shape == (2, 8, 8, 1)
  words = ("sample", "--workdir", home)
  for flag in ("--prompt=seven", "--guidance_scale=3", "--negative=x"):
    refuse(*words, flag, says=["changes nothing", "unconditional"])
