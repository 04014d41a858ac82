"""Emoji: two packages as npm lays them out, joined by code points."""

import json

import numpy as np
import pytest
from PIL import Image

from gen_jax import types
from gen_jax.data.emoji import emoji_dataset_builder as builder
from gen_jax.data.emoji import source

NAMES = [
  {"label": "red heart", "hexcode": "2764-FE0F", "tags": ["love", "red"]},
  {"label": "no image", "hexcode": "1F999"},
  {"label": "waving hand", "hexcode": "1F44B"},
  *(
    {
      "label": f"letter {i}",
      "hexcode": f"1F1{i:02X}",
      "tags": ["letter"],
      "skins": [{"label": f"dark letter {i}", "hexcode": f"1F1{i:02X}-1F3FF"}],
    }
    for i in range(60)
  ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """node_modules with both packages: an image for all but one; half transparent."""
  root = tmp_path_factory.mktemp("npm") / "node_modules"
  for name, version in ((builder.IMAGES, "1.1.0"), (builder.NAMES, "17.0.0")):
    (root / name).mkdir(parents=True)
    about = json.dumps({"name": name, "version": version})
    (root / name / "package.json").write_text(about)
  (root / builder.IMAGES / "assets").mkdir()
  (root / builder.NAMES / "en").mkdir()
  (root / builder.NAMES / "en" / "data.json").write_text(json.dumps(NAMES))
  letters = [f"1f1{i:02x}" for i in range(60)]
  stems = ["2764-fe0f", "1f44b", *letters, *(f"{name}-1f3ff" for name in letters)]
  for i, stem in enumerate(stems):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4] = (200, i, 0, 255)
    file = root / builder.IMAGES / "assets" / f"{stem}.webp"
    Image.fromarray(pixels).save(file, lossless=True)
  return root.parent


def examples(folder, tmp_path, split, **options):
  made = source.Emoji(str(folder), data_dir=str(tmp_path), **options)
  return {e["caption"]: e["image"] for e in made.examples(split)}


def test_each_image_has_its_name_in_one_split(folder, tmp_path):
  train, held = (examples(folder, tmp_path, s) for s in builder.SPLITS)
  assert not train.keys() & held.keys() and 0 < len(held) < 12
  both = {**train, **held}
  assert both.keys() == {n["label"] for n in NAMES} - {"no image"}
  for i, label in ((0, "red heart"), (1, "waving hand"), (5, "letter 3")):
    assert both[label].dtype == np.uint8
    assert (both[label][:4] == (200, i, 0)).all() and (both[label][4:] == 255).all()


def test_tags_and_tones_are_shown_when_asked_for(folder, tmp_path):
  """A tone is in the split of its emoji."""
  for split in builder.SPLITS:
    plain = {name for name in examples(folder, tmp_path, split) if "letter" in name}
    more = examples(folder, tmp_path, split, tones=True, tags=True)
    wanted = {f"{name}, letter" for name in plain}
    toned = {f"dark {name}" for name in wanted}
    assert {name for name in more if "letter" in name} == wanted | toned


def test_a_package_that_is_not_there_is_named(folder, tmp_path):
  with pytest.raises(types.InputError, match=f"lacks the npm package {builder.IMAGES}"):
    examples(tmp_path, tmp_path, "train")
