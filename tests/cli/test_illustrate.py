"""`gen-jax illustrate` and what `gen-jax report` makes of it."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from gen_jax.cli import main
from gen_jax.inference import figures as drawn
from gen_jax.inference import sheets
from gen_jax.tasks import attribution
from gen_jax.train import writers
from tests.convert import test_stable_diffusion as tiny

pytestmark = pytest.mark.usefixtures("one_device")
EVERY = {"guidance_steps", "samplers", "walk", "noising"}


@pytest.fixture
def saved(monkeypatch):
  """{name: (rows, columns)} of the figures that are saved."""
  found, save = {}, sheets.save_figure

  def noted(workdir, name, images, *rest):
    found[name] = images.shape[:2]
    return save(workdir, name, images, *rest)

  monkeypatch.setattr(sheets, "save_figure", noted)
  return found


def test_a_model_that_draws(call, digits_workdir, tmp_path, saved):
  words = ("--steps", "1", "--scales", "1", "2", "4", "--samplers", "ddim")
  prompts = ("--prompt", "a handwritten zero", "--prompt", "one")
  words = ("illustrate", "--workdir", digits_workdir, *words, *prompts, "--json")
  outcome = call(*words)
  assert outcome.code == 0, outcome
  figures = json.loads(outcome.out.splitlines()[-1])["figures"]
  assert figures.keys() == saved.keys()
  assert saved == {
    "guidance_steps": (3, 1),
    "samplers": (1, 2),
    "walk": (2, 3),  # two steps
    "attention": (2, 4),
    "noising": (3, 8),
  }
  for path in figures.values():
    with Image.open(path) as image:
      assert image.width > 100 and path.endswith(".png")
  writers.SampleFiles(digits_workdir, 0, sheets.save_sheet).write(
    1500, {"samples": np.zeros((1, 3, 8, 8, 1), np.uint8)}
  )
  page = tmp_path / "page.html"
  report = call("report", "--workdir", digits_workdir, "--out", page)
  assert report.code == 0, report
  html = page.read_text()
  for words in ("rows guidance 1, 2, 4, columns 1 steps", "rows ddim, ", "step 1,500"):
    assert words in html
  sources = re.findall(r'(?:src|href)="([^"]*)"', html)
  assert len(sources) >= 4
  assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_an_autoencoder(call, vae_workdir, saved):
  """The image, its reconstruction, sixteen channels, and these as a colour."""
  outcome = call("illustrate", "--workdir", vae_workdir, "--json")
  assert outcome.code == 0, outcome
  assert saved == {"latents": (4, 19)}


@pytest.mark.parametrize(
  "flags, says",
  [
    ("--steps 0", ["--steps 0", "at least 1"]),
    ("--steps few", ["--steps", "'few'"]),
    ("--samplers ddimm", ["sampler (--samplers) 'ddimm'", "did you mean 'ddim'"]),
  ],
)
def test_bad_flags(refuse, image_workdir, flags, says):
  refuse("illustrate", "--workdir", image_workdir, *flags.split(), says=says)
  assert not (image_workdir / "figures").exists()


def test_a_text_model(refuse, text_workdir):
  refuse("illustrate", "--workdir", text_workdir, says=["this is a text model"])


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
  """A tiny Stable Diffusion, which came without data."""
  home = tmp_path_factory.mktemp("imported") / "w"
  words = ("import", "--from", tiny.GOLDEN / "v1", "--workdir", home, *tiny.MESH)
  main.run([str(word) for word in words])
  return home


def test_an_imported_model_is_refused_before_it_draws(refuse, imported, monkeypatch):
  monkeypatch.delattr(drawn.Canvas, "draw")
  words = ("illustrate", "--workdir", imported)
  refuse(*words, says=["an imported model, which has no captions: give --prompt"])
  assert not (imported / "figures").exists()


@pytest.mark.long
def test_an_imported_model_shows_latents_of_what_it_draws(call, imported, monkeypatch):
  """Its text encoder masks nothing: all tokens are looked at."""

  def draw(self, **changes):
    draw = np.random.default_rng(0).integers(0, 256, (1, *self.pixels), np.uint8)
    return lambda scale: draw

  monkeypatch.setattr(drawn.Canvas, "draw", draw)
  words = ("--prompt", "wow 42", "--steps", "1", "--scales", "1", "--samplers", "ddim")
  outcome = call("illustrate", "--workdir", imported, *words, "--json")
  assert outcome.code == 0, outcome
  figures = json.loads(outcome.out.splitlines()[-1])["figures"]
  assert figures.keys() == {*EVERY, "attention", "latents"}


def test_a_network_that_hears_no_words_has_no_such_figure(
  call, digits_workdir, monkeypatch
):
  def none(*_):
    raise LookupError("the UNet has no cross-attention to a text")

  monkeypatch.setattr(attribution, "attention_maps", none)
  words = ("--steps", "1", "--scales", "1", "--samplers", "ddim", "--prompt", "one")
  outcome = call("illustrate", "--workdir", digits_workdir, *words, "--json")
  assert outcome.code == 0, outcome
  figures = json.loads(outcome.out.splitlines()[-1])["figures"]
  assert figures.keys() == EVERY
