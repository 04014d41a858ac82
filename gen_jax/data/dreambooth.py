"""DreamBooth: a few images of an instance, mixed with images of its class.

    loss = (sum over instances + prior_weight * sum over the class) / sum of weights

The instance's images bind it to a prompt with a rare word ("a sks dog"); images of the
class, drawn by the model itself with the prompt without that word ("a dog"), preserve
the prior.

Source: Ruiz et al. 2023 (arXiv:2208.12242) section 3.3, equation 2, whose lambda is
prior_weight; there the sum is not divided by 1 + lambda.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from gen_jax import ranges
from gen_jax.data import folders, image_files, sources
from gen_jax.errors import InputError
from gen_jax.system import copies


@dataclasses.dataclass(frozen=True)
class DreamBooth:
  """Images of an instance and of its class, in equal numbers.

  The validation split is a tenth of the class images or, without any, the instance's.

  Attributes:
    directory: images of the instance.
    prompt: their caption.
    prior_directory: images of the class, e.g. drawn by `gen-jax sample`; None: none.
    prior_prompt: their caption.
    prior_weight: lambda, weight of the class images in the loss.
  """

  directory: str
  prompt: str
  prior_directory: str | None = None
  prior_prompt: str = ""
  prior_weight: ranges.Positive = 1.0

  def __post_init__(self) -> None:
    ranges.check(self)

  def paths(self, split: str) -> list[pathlib.Path]:
    """The image files of a split."""
    instances = _paths(self.directory, "directory")
    if self.prior_directory is None:
      return instances
    others = _paths(self.prior_directory, "prior_directory")
    kind = [others[i] for i in sources.held_out(len(others), split, 0.1)]
    return kind if split == "validation" else instances + kind

  def examples(self, split: str) -> Sequence[sources.Example]:
    instances = sources.Mapped(
      _paths(self.directory, "directory"), lambda p: _example(p, self.prompt, 1.0)
    )
    if self.prior_directory is None:
      return instances
    others = _paths(self.prior_directory, "prior_directory")
    kind = sources.Mapped(
      others,
      lambda p: _example(p, self.prior_prompt, self.prior_weight),
      sources.held_out(len(others), split, 0.1),
    )
    if split == "validation":
      return kind

    def fn(i):
      own = kind if i % 2 else instances
      return own[i // 2 % len(own)]

    return sources.Mapped(range(2 * max(len(instances), len(kind))), fn)


def _paths(directory: str, key: str) -> list[pathlib.Path]:
  """The images directly in a folder."""
  root, name = copies.here(directory, f"data.source.{key}"), f"data.source.{key}"
  found = [p for p in folders.images_in(directory, name) if p.parent == root]
  if not found:
    raise InputError(
      f"{name} {directory!r} holds no images but in subfolders; move them"
    )
  return found


def _example(path: pathlib.Path, caption: str, weight: float) -> sources.Example:
  image = image_files.open_image(path)
  return {"image": image, "caption": caption, "loss_weight": weight}
