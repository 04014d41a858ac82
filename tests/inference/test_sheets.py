"""Image files say how they were made, and others are not replaced in silence."""

import json

import numpy as np
import pytest
from PIL import Image

import gen_jax
from gen_jax.cli import main
from gen_jax.inference import sheets
from gen_jax.types import InputError

IMAGES = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
HOW = {"guidance_scale": 3.0, "sha256": "abc", "image": "a.png", "step": 7}


def write(folder, *, captions=("a", "a", "b", "b"), seed=5, **how):
  def draw(start):
    yield IMAGES[start:]

  index = [0, 1, 0, 1]
  return sheets.write_images(
    folder, draw, 4, list(captions), seed, index, 2, {**HOW, **how}
  )


def test_an_image_says_how_it_was_made(tmp_path):
  for i, one in enumerate(write(tmp_path)["samples"]):
    assert sheets.about_image(tmp_path / one["path"]) == {
      **{"prompt": "aabb"[i], "seed": 5, "index": i % 2, "guidance_scale": 3.0},
      **{"sha256": "abc", "step": 7, "gen_jax": gen_jax.__version__},  # no local path
    }
    np.testing.assert_array_equal(sheets.open_own(tmp_path / one["path"]), IMAGES[i])
    with Image.open(tmp_path / one["path"]) as image:
      assert image.info["Description"] == "aabb"[i]


def test_words_of_any_script_come_back(tmp_path):
  prompt = 'a "red" ' + "\u8d64\u3044\u4e38 \u2028 \U0001f34e"
  write(tmp_path, captions=[prompt] * 2 + ["b"] * 2)
  (path,) = tmp_path.glob("a__red*_0.png")
  assert sheets.about_image(path)["prompt"] == prompt


def test_what_is_replaced_is_said_with_what_differs(tmp_path, capsys):
  write(tmp_path)
  write(tmp_path)  # the same: kept
  assert "replacing" not in capsys.readouterr().out
  write(tmp_path, guidance_scale=4.0)
  said = capsys.readouterr().out
  assert "replacing 4 images" in said and "guidance_scale was 3.0, is 4.0" in said
  write(tmp_path, seed=6)  # of other names: all stay
  assert "replacing" not in capsys.readouterr().out
  assert len(list(tmp_path.glob("*_5_*.png"))) == 4


def test_a_terminal_does_not_obey_what_an_image_says(tmp_path, capsys):
  path = tmp_path / "one.png"
  sheets.save_image(path, IMAGES[0], about={"prompt": "\x1b[2Ja\nb \u8d64"})
  main.main(["inspect", str(path)])
  assert capsys.readouterr().out.split(maxsplit=1)[1] == "\\x1b[2Ja\\nb \u8d64\n"


def test_images_that_say_nothing_are_refused(tmp_path):
  path = tmp_path / "plain.png"
  Image.fromarray(IMAGES[0]).save(path)
  with pytest.raises(InputError, match="does not say how it was made"):
    sheets.about_image(path)
  path.write_bytes(json.dumps({}).encode())
  with pytest.raises(InputError):
    sheets.about_image(path)
