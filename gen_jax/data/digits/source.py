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

    builder = tfds.own(digits_dataset_builder.Builder, self.data_dir)
    split = "train" if split == "train" else "test"
    source = sources.checked(builder.as_data_source(split), str(builder.data_path))
    return sources.Mapped(source, lambda e: {**e, "caption": e["caption"].decode()})

  def class_names(self) -> tuple[str, ...]:
    """ "zero" to "nine"."""
    return NAMES

  def prompt_benchmark(self, num: int, image_size: int) -> sources.PromptBenchmark:
    """ "a handwritten zero" to "... nine", in turn; see `data.digits.scorer`."""
    from gen_jax.data.digits import scorer

    return scorer.prompt_benchmark(self, num, image_size)
