"""The source of shapes: scenes as a function of (seed, index)."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from gen_jax import ranges
from gen_jax.data import sources
from gen_jax.data.edits import Scorer
from gen_jax.data.shapes import edits, scenes, scorer


@dataclasses.dataclass(frozen=True)
class Shapes:
  """Scenes with captions, or before and after an edit.

  Attributes:
    num, num_validation: number of scenes in each split.
    side: of the images, in pixels.
    seed: of the scenes.
  """

  num: ranges.Count = 20_000
  num_validation: ranges.Count = 500
  side: Annotated[int, ranges.Range(16, 4096)] = 24
  seed: ranges.Seed = 0

  def __post_init__(self) -> None:
    ranges.check(self)

  def examples(self, split: str) -> Sequence[sources.Example]:
    """image, caption and scene; the splits are disjoint."""
    return sources.Mapped(self._indices(split), self._example)

  def _indices(self, split: str) -> range:
    first, num = {"train": (0, self.num)}.get(split, (self.num, self.num_validation))
    return range(first, first + num)

  def _example(self, index: int) -> sources.Example:
    generator = np.random.default_rng((self.seed, index))
    scene = scenes.scene(generator)
    return {
      "image": scenes.draw(scene, self.side),
      "caption": scenes.caption(scene, generator),
      "scene": scene,
    }

  def edits(self, split: str) -> Sequence[sources.Example]:
    """before, caption (the instruction), image (after), and the two scenes."""
    return sources.Mapped(self._indices(split), self._edit)

  def _edit(self, index: int) -> sources.Example:
    generator = np.random.default_rng((self.seed, index))
    before = scenes.scene(generator)
    instruction, after = scenes.choice(generator, edits.EDITS)(before, generator)
    return {
      "before": scenes.draw(before, self.side),
      "caption": instruction,
      "image": scenes.draw(after, self.side),
      "scenes": (before, after),
    }

  def edit_scorer(self, pairs: Sequence[sources.Example]) -> Scorer:
    """See `scorer.edit_accuracy`."""
    wanted = [pair["scenes"] for pair in pairs]
    return lambda images: scorer.edit_accuracy(images, wanted)

  def prompt_benchmark(
    self, num: ranges.Count, image_size: int
  ) -> sources.PromptBenchmark:
    """The first `num` captions of the validation split; see `scorer.accuracy`."""
    examples = list(self.examples("validation"))[:num]
    wanted = [example["scene"] for example in examples]
    real = np.stack([scenes.draw(scene, image_size) for scene in wanted])
    return sources.PromptBenchmark(
      [example["caption"] for example in examples],
      lambda images: scorer.accuracy(images, wanted),
      scorer.accuracy(real, wanted)["prompt_accuracy"],
    )
