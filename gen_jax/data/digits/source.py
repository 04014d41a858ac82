"""The embedded handwritten digits as a source of images."""

import dataclasses
from collections.abc import Sequence

from gen_jax import errors
from gen_jax.data import sources, tfds
from gen_jax.data.digits import NAMES


@dataclasses.dataclass(frozen=True)
class Digits:
  """The embedded handwritten digits, prepared on first use. See `data.digits`."""

  data_dir: str | None = None

  def examples(self, split: str) -> Sequence[sources.Example]:
    with errors.extra("data"):
      import sklearn  # noqa: F401 (the builder's images)

      from gen_jax.data.digits import digits_dataset_builder

    builder = digits_dataset_builder.Builder(
      data_dir=tfds.home(self.data_dir), file_format="array_record"
    )
    builder.download_and_prepare()
    source = builder.as_data_source("train" if split == "train" else "test")
    return sources.Mapped(source, lambda e: {**e, "caption": e["caption"].decode()})

  def class_names(self) -> tuple[str, ...]:
    """ "zero" to "nine"."""
    return NAMES

  def prompt_benchmark(self, num: int, image_size: int) -> sources.PromptBenchmark:
    """ "a handwritten zero" to "... nine", in turn; see `data.digits.scorer`."""
    from gen_jax.data.digits import scorer

    return scorer.prompt_benchmark(self, num, image_size)
