"""`gen-jax illustrate` and what `gen-jax report` makes of it."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from gen_jax.cli import sample
from gen_jax.train import writers


def sheet(path):
  """(rows, columns) of a sheet of 8x8 pictures, each 8 times as wide, and lines."""
  with Image.open(path) as image:
    return image.height // (9 * 8), image.width // (9 * 8)


def test_a_model_that_draws(call, digits_workdir, tmp_path):
  words = ("--steps", "1", "--scales", "1", "2", "4", "--samplers", "ddim")
  prompts = ("--prompt", "a handwritten zero", "--prompt", "one")
  words = ("illustrate", "--workdir", digits_workdir, *words, *prompts, "--json")
  outcome = call(*words)
  assert outcome.code == 0, outcome
  figures = json.loads(outcome.out.splitlines()[-1])["figures"]
  assert {name: sheet(path) for name, path in figures.items()} == {
    "guidance_steps": (3, 1),
    "samplers": (1, 2),
    "attention": (2, 4),
  }
  writers.Pictures(digits_workdir, 0, sample.save_sheet).write(
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


def test_an_autoencoder(call, vae_workdir):
  """The picture, its reconstruction, sixteen channels, and these as a colour."""
  outcome = call("illustrate", "--workdir", vae_workdir, "--json")
  assert outcome.code == 0, outcome
  figures = json.loads(outcome.out.splitlines()[-1])["figures"]
  assert {name: sheet(path) for name, path in figures.items()} == {"latents": (4, 19)}


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
