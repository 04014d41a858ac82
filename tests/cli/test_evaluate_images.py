"""`gen-jax evaluate` of images: figures with their protocol, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from gen_jax.data.digits import source as digits
from gen_jax.evaluation import fidelity
from gen_jax.inference import image_generator, sheets

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def evaluate(call):
  def run(workdir, *flags):
    outcome = call("evaluate", "--workdir", workdir, *flags, "--json")
    assert outcome.code == 0, outcome
    result = json.loads(outcome.out.splitlines()[-1])
    assert result == json.loads((workdir / "evaluation.json").read_text())
    return result

  return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """The first 30 digits of the training split, and a sheet of them that is no digit."""
  path = tmp_path_factory.mktemp("images")
  examples = digits.Digits().examples("train")
  images = np.stack([examples[i]["image"] for i in range(30)])
  for i, image in enumerate(images):
    sheets.save_image(path / f"{i}.png", image)
  sheets.save_sheet(path / "grid.png", images[None])
  return path


def test_drawn_images(evaluate, refuse, digits_workdir, tmp_path):
  """A model of zeros predicts v = 0; its figures stand beside noise's own."""
  flags = ("--images", "20", "--baseline", "--seed", "4")
  result = evaluate(digits_workdir, *flags)
  protocol = result["protocol"]
  assert protocol["num"] == 20 and protocol["reference_num"] == 1438
  assert (protocol["weights"], protocol["seed"], protocol["split"]) == (
    "ema",
    4,
    "train",
  )
  assert protocol["sampling"]["num_steps"] == 2
  assert (len(protocol["reference_sha256"]), protocol["features_sha256"]) == (64, "")
  assert result["pixels_16/frechet"] > 0 and result["pixels_16/memorised"] == 0.0
  assert result["random_latents/pixels_16/frechet"] > 0
  shown = Image.open(digits_workdir / "figures/nearest.png")
  assert shown.width > 4 * 64 and shown.height > 8 * 64
  other = tmp_path / "other.json"
  other.write_text(json.dumps(result))
  words = ("evaluate", "--workdir", digits_workdir, *flags, "--against", other)
  says = ["another protocol", "num (20 there, 21 here)"]
  refuse(*words, "--images", "21", says=says)
  says = ["seed (4 there, 5 here)", "sampling (", "split ('train' there"]
  flags = ("--seed", "5", "--split", "validation", "--config.sampling.num_steps=3")
  refuse(*words, *flags, says=says)
  says = ["sampling.size=(16, 16)", "data.image_size=8", "set it to None"]
  refuse(*words, "--config.sampling.size=(16,16)", says=says)
  says = ["features ('pixels_16' there, 'digits_mlp' here)", "features_sha256"]
  refuse(*words, "--features", "digits", says=says)


def test_batches_that_were_drawn_are_not_drawn_again(
  evaluate, call, digits_workdir, monkeypatch
):
  """And one that was damaged meanwhile is."""
  words = ("--images=150", "--seed=5")
  whole = evaluate(digits_workdir, *words)
  drawn, plain = [], image_generator.ImageGenerator.images

  def images(*args):
    if len(drawn) == 2:
      raise KeyboardInterrupt
    drawn.append(1)
    return plain(*args)

  monkeypatch.setattr(image_generator.ImageGenerator, "images", images)
  command = ("evaluate", "--workdir", digits_workdir, *words)
  assert call(*command).code == 130 and len(drawn) == 2
  second = next((digits_workdir / "evaluation.partial/0").glob("000001.*"))
  second.write_bytes(second.read_bytes()[:-1] + b"x")
  drawn[:] = ["of another number"] * 3
  assert evaluate(digits_workdir, *words) == whole
  assert len(drawn) == 5  # batches 1 and 2 of three
  assert not (digits_workdir / "evaluation.partial").exists()


def test_a_folder_of_training_images(evaluate, call, digits_workdir, folder):
  """All are found again; of the whole training set they are a small part."""
  result = evaluate(digits_workdir, "--folder", folder)
  assert result["protocol"]["num"] == 30  # without the sheet
  assert "sampling" not in result["protocol"] and "step" not in result
  assert result["pixels_16/nearest"] == 0.0
  assert result["pixels_16/memorised"] == 1.0
  assert result["pixels_16/nearer_than_held_out"] == 1.0
  words = ("evaluate", "--workdir", digits_workdir, "--folder", folder)
  again = call(*words, "--against", digits_workdir / "evaluation.json")
  assert again.code == 0 and "there" in again.out


@pytest.mark.parametrize("more", ["before_after.png", "._0.png", "__MACOSX/0.png"])
def test_what_commands_and_desktops_add_is_not_counted(
  evaluate, digits_workdir, folder, tmp_path, more
):
  home = tmp_path / "[out]"
  home.mkdir()
  images = np.stack([np.asarray(Image.open(folder / f"{i}.png")) for i in range(4)])

  def drawn(start):
    return iter([images[start:, ..., None]])

  sheets.write_images(home, drawn, 4, ["a"] * 4, 0, list(range(4)), 2, {})
  (home / more).parent.mkdir(exist_ok=True)
  Image.new("L", (99, 33)).save(home / more)
  assert evaluate(digits_workdir, "--folder", home)["protocol"]["num"] == 4


def test_reconstructions(evaluate, vae_workdir):
  """An autoencoder of zeros draws 128 everywhere."""
  result = evaluate(vae_workdir, "--images", "1000")
  examples = digits.Digits().examples("validation")
  real = np.stack([examples[i]["image"] for i in range(len(examples))])
  grey = np.full_like(real, 128)
  assert result["psnr"] == pytest.approx(np.mean(fidelity.psnr(real, grey)))
  assert result["protocol"]["num"] == len(real) == 359
  pixels = real.reshape(359, -1) / 255.0
  apart = np.square(pixels.mean(0) - 128 / 255).sum() + pixels.var(0, ddof=1).sum()
  # Averaged up from 8 to 16 pixels and no further: sides of 8 stay 8.
  assert result["pixels_16/frechet"] == pytest.approx(apart, rel=1e-4)


@pytest.mark.parametrize(
  "flags, says",
  [
    ("--images 1", ["--images 1", "at least 2"]),
    ("--images 2000000", ["num=2000000", "1048576"]),
    ("--images 5 --folder x", ["one of --images N and --folder"]),
    ("--features pixels", ["one of --images N and --folder"]),
    ("--images 5 --features fid", ["features (--features) 'fid'", "pixels"]),
    ("--images 5 --features digits --feature_weights x", ["'weights'"]),
    ("--images 5 --split test", ["--split", "'test'", "train, validation"]),
    ("--folder nowhere", ["'nowhere' is not a folder"]),
    ("--folder docs --baseline", ["--baseline", "--images"]),
    ("--images 5 --against README.md", ["README.md holds no evaluation"]),
  ],
)
def test_bad_flags(refuse, image_workdir, flags, says):
  refuse("evaluate", "--workdir", image_workdir, *flags.split(), says=says)
  assert not (image_workdir / "evaluation.json").exists()


@pytest.mark.parametrize("flags", ["--images 5", "--folder docs"])
def test_images_of_a_text_model(refuse, text_workdir, flags):
  says = ["text model"]
  refuse("evaluate", "--workdir", text_workdir, *flags.split(), says=says)


def test_on_other_data(evaluate, vae_workdir, folder):
  """A folder in the place of the autoencoder's own data."""
  source = {"name": "image_folder", "directory": str(folder), "validation_fraction": 0}
  other = ("--split", "train", f"--config.data.source={source}")
  protocol = evaluate(vae_workdir, "--images", "5", *other)["protocol"]
  assert (protocol["num"], protocol["reference_num"]) == (5, 31)
