"""Captioned emoji as a TFDS data set, without TensorFlow.

    npm install --prefix DIR @lobehub/fluent-emoji-3d emojibase-data

Microsoft's Fluent emoji in 3D, 256x256 (MIT), with English names and tags of emojibase
(MIT). Both identify an emoji by its hexadecimal code points; the variation selector
fe0f is ignored. An emoji and its skin tones are in the same split; a twentieth, by a
hash, is validation.
"""

import io
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from gen_jax.data import image_files
from gen_jax.errors import InputError
from gen_jax.system import copies

IMAGES, NAMES = "@lobehub/fluent-emoji-3d", "emojibase-data"
SPLITS = ("train", "validation")
TONES = "_tones"  # suffix of a split's name: its variants by skin tone


def packages(directory: pathlib.Path) -> dict[str, tuple[pathlib.Path, str]]:
  """Folder and version of both packages, found anywhere below a folder.

  Raises:
    InputError: one is missing.
  """
  found = {}
  for path in sorted(directory.rglob("package.json")):
    about = json.loads(path.read_text())
    found.setdefault(about.get("name"), (path.parent, str(about.get("version"))))
  for name in (IMAGES, NAMES):
    if name not in found:
      raise InputError(
        f"{directory} lacks the npm package {name}: npm install --prefix {directory}"
        f" {IMAGES} {NAMES}"
      )
  return {name: found[name] for name in (IMAGES, NAMES)}


def _key(code_points: str) -> str:
  """'2764-FE0F' -> '2764'."""
  return "-".join(p for p in code_points.lower().split("-") if p != "fe0f")


def _examples(images: pathlib.Path, names: pathlib.Path, split: str) -> Iterator[Any]:
  """(path of an image, its name, its tags) of a split."""
  paths = {_key(path.stem): path for path in (images / "assets").glob("*.webp")}
  wanted, is_toned = split.removesuffix(TONES), split.endswith(TONES)
  for emoji in json.loads((names / "en" / "data.json").read_text()):
    is_validation = zlib.crc32(_key(emoji["hexcode"]).encode()) % 20 == 0
    if is_validation == (wanted == "validation"):
      for variant in emoji.get("skins", []) if is_toned else [emoji]:
        if path := paths.get(_key(variant["hexcode"])):
          yield path, variant["label"], ", ".join(emoji.get("tags", []))


class Builder(tfds.core.GeneratorBasedBuilder):
  """Features: image [256, 256, 3] uint8 on white, label and tags.

  Args:
    directory: holds both npm packages.
    kwargs: of TFDS.
  """

  VERSION = tfds.core.Version("1.0.0")

  def __init__(self, *, directory: str, **kwargs):
    self.found = packages(copies.here(directory, "data.source.directory"))
    name = "_".join(version for _, version in self.found.values())
    config = tfds.core.BuilderConfig(name=name, version=self.VERSION)
    super().__init__(config=config, **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(None, None, 3)),
          "label": tfds.features.Text(),
          "tags": tfds.features.Text(),
        }
      ),
      homepage="https://github.com/microsoft/fluentui-emoji",
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    names = (f"{split}{which}" for split in SPLITS for which in ("", TONES))
    return {name: self._generate_examples(name) for name in names}

  def _generate_examples(self, split: str):
    folders = (folder for folder, _ in self.found.values())
    for path, label, tags in _examples(*folders, split):
      png = io.BytesIO()
      Image.fromarray(image_files.open_image(path)).save(
        png, format="PNG", compress_level=1
      )
      png.seek(0)
      yield path.stem, {"image": png, "label": label, "tags": tags}
