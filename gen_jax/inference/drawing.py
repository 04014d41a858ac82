"""Draws and edits images for a run: which random keys, in which batches.

The commands write what this draws, and `Run` returns it: both give the same images.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from gen_jax import rng
from gen_jax.data import image_files
from gen_jax.inference import image_generator, inversion, sheets
from gen_jax.system import copies, files
from gen_jax.tasks import diffusion
from gen_jax.types import InputError, Params, PyTree

MOST = 2**20  # samples at once: each has a place in a list before it is drawn
_MOST_PIXELS = 2**14  # of a side


class Weights(Protocol):
  """The part of a run's weights that is needed here."""

  @property
  def params(self) -> Params: ...
  @property
  def frozen(self) -> PyTree: ...


def check(num: int, seed: int) -> None:
  """Raises InputError for an invalid number of samples or seed."""
  if not 1 <= num <= MOST:
    raise InputError(f"--num {num} must be at least 1 and at most {MOST}")
  if not 0 <= seed < 2**63:
    raise InputError(f"--seed {seed} must be at least 0 and less than 2**63")


def check_idle(given: Collection[str], reasons: Mapping[str, str]) -> None:
  """Raises InputError for a setting without effect.

  Args:
    given: names of settings.
    reasons: {name: why it has no effect}.
  """
  for name, reason in reasons.items():
    if name in given:
      raise InputError(f"--{name} changes nothing: {reason}; leave one of them out")


class Images(NamedTuple):
  """Images that are not drawn yet.

  Attributes:
    captions: of each.
    numbers: of each among those of its caption.
    batch_size: images drawn at once.
    draw: number of an image -> batches uint8 [n, H, W, C] from it on.
  """

  captions: list[str]
  numbers: list[int]
  batch_size: int
  draw: Callable[[int], Iterator[np.ndarray]]

  def all(self) -> np.ndarray:
    """Draws them: uint8 [N, H, W, C]."""
    return np.concatenate(list(self.draw(0)))

  def write(self, folder: pathlib.Path, seed: int, columns: int, how: dict) -> dict:
    """Draws into a folder; see `sheets.write_images`."""
    size, rest = self.batch_size, (seed, self.numbers, columns, how)
    return sheets.write_images(folder, self.draw, size, self.captions, *rest)


def images(
  generator: image_generator.ImageGenerator,
  weights: Weights,
  prompts: Sequence[str],
  num: int,
  seed: int,
  negative: str = "",
) -> Images:
  """`num` images per prompt; image i of a prompt depends on (seed, i)."""
  captions = [prompt for prompt in prompts for _ in range(num)]
  index = [i for _ in prompts for i in range(num)]
  keys = rng.sample_keys(seed, num)[np.array(index)]

  def draw(start):
    given = (weights.params, weights.frozen, captions, keys, negative)
    return generator.batches(*given, start)

  return Images(captions, index, min(generator.batch_size, len(captions)), draw)


def between(
  generator: image_generator.ImageGenerator,
  weights: Weights,
  prompts: Sequence[str],
  num: int,
  seed: int,
  negative: str = "",
) -> Images:
  """`num` images from the first of two prompts to the second, in one batch."""
  keys = rng.sample_keys(seed, 2)

  def draw(start):
    del start
    how = (keys, num, negative)
    ends = (prompts[0], prompts[1])
    yield inversion.interpolate(generator, weights.params, weights.frozen, ends, *how)

  return Images([" to ".join(prompts)] * num, list(range(num)), num, draw)


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
  """How an image is edited.

  Attributes:
    image: uint8 [H, W, 1 or 3], or a file.
    prompt: what to draw; None: the prompt `invert`.
    mask: bool [H, W], true where the image changes, or a file; None: everywhere.
    outpaint: pixels to add and draw: 'left,top,right,bottom'.
    strength: in [0, 1]: 0 is the image itself, 1 starts from noise; None: 0.6, or 1
      with a mask, with `invert` or for a model of instructions.
    invert: a caption of the image; draws from the noise found by inversion under it.
    vary: with `invert`, in [0, 1]: 0 keeps the noise found, 1 takes new noise.
    negative: the negative prompt.
    resize: side in pixels: cuts the centre of image and mask and scales it, as training
      does; None: as they are.
  """

  image: np.ndarray | str | os.PathLike
  prompt: str | None = None
  mask: np.ndarray | str | os.PathLike | None = None
  outpaint: str | None = None
  strength: float | None = None
  invert: str | None = None
  vary: float = 0.0
  negative: str = ""
  resize: int | None = None

  @property
  def is_partial(self) -> bool:
    """Whether parts of the image are kept."""
    return self.mask is not None or bool(self.outpaint)

  @property
  def text(self) -> str:
    """The prompt that is drawn."""
    return (self.invert or "") if self.prompt is None else self.prompt

  def strength_for(self, task: diffusion.Diffusion) -> float:
    """The strength, or its default."""
    if self.strength is not None:
      return self.strength
    is_redrawn = self.is_partial or self.invert is not None or task.condition
    return 1.0 if is_redrawn else 0.6

  def check(self, sampling: Mapping[str, Any]) -> None:
    """Raises InputError for settings that exclude each other.

    Args:
      sampling: the keys of the sampling block that are given.
    """
    if self.resize is not None and not 1 <= self.resize <= _MOST_PIXELS:
      raise InputError(f"--resize {self.resize} must be in [1, {_MOST_PIXELS}] pixels")
    if self.invert is None and self.vary:
      raise InputError(f"--vary {self.vary} is for --invert: say what the image shows")
    if self.invert is not None and self.is_partial:
      raise InputError("--invert is for the whole image: leave out --mask, --outpaint")
    if self.invert is not None and "sampler" in sampling:
      raise InputError(
        f"--invert walks up and down by belm: leave out --sampler {sampling['sampler']}"
      )

  def check_task(self, task: diffusion.Diffusion, sampling: Mapping[str, Any]) -> None:
    """Raises InputError for an edit that the model cannot do; see `check`."""
    if task.condition and task.condition.reads == "image" and not self.is_partial:
      raise InputError("this model fills parts of an image: give --mask or --outpaint")
    if "image_guidance_scale" in sampling and not task.condition_drop_prob:
      raise InputError(
        f"--image_guidance_scale {sampling['image_guidance_scale']} is for models of"
        " instructions"
        " (task.condition_drop_prob above 0); leave it out"
      )

  def pixels(self, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [H, W, channels], and bool [H, W], where it is drawn again.

    Raises:
      InputError: files that cannot be read, of two sizes, or there is nothing to draw.
    """
    image, change = self.image, self.mask
    if not isinstance(image, np.ndarray):
      image = image_files.open_image(_fetched(image, "image"))
    if image.dtype != np.uint8:
      raise InputError(f"the image is of {image.dtype}; it must be uint8, 0 to 255")
    image = image_files.in_channels(image, channels)
    if change is None:
      change = np.full(image.shape[:2], not self.outpaint)
    elif not isinstance(change, np.ndarray):
      change = image_files.open_mask(_fetched(change, "mask"))
    if change.dtype != np.bool_ or change.ndim != 2:
      raise InputError(
        f"the mask is {change.dtype} {list(change.shape)}; it must be bool [H, W]"
      )
    (height, width), (rows, columns) = image.shape[:2], change.shape
    if (height, width) != (rows, columns):
      named = "" if isinstance(self.mask, np.ndarray) else f" {self.mask}"
      raise InputError(
        f"--mask{named} is {columns}x{rows} pixels, the image {width}x{height}: give a"
        " mask of the same size"
      )
    if self.resize:
      image = image_files.to_square(image, self.resize, channels)
      white = np.uint8(255) * change[..., None]
      change = image_files.to_square(white, self.resize, 1)[..., 0] > 127
    if self.outpaint:
      left, top, right, bottom = _sides(self.outpaint)
      around = ((top, bottom), (left, right))
      change = np.pad(change, around, constant_values=True)
      image = np.pad(image, (*around, (0, 0)), mode="edge")
    if not change.any():
      names = {"mask": self.mask is not None, "outpaint": self.outpaint}
      given = " and ".join(f"--{name}" for name, is_given in names.items() if is_given)
      raise InputError(
        f"nothing of the image may change by {given}, so nothing is drawn: white"
        " changes, black stays"
      )
    return image, change

  def plan(
    self,
    generator: image_generator.ImageGenerator,
    weights: Weights,
    pixels: tuple[np.ndarray, np.ndarray],
    num: int,
    seed: int,
  ) -> Images:
    """`num` edits in one batch; edit i depends on (seed, i)."""
    (image, change), captions = pixels, [self.text] * num
    keys, strength = rng.sample_keys(seed, num), self.strength_for(generator.task)
    given = (weights.params, weights.frozen)

    def draw(start):
      del start
      if self.invert is None:
        how = (*given, captions, keys, image, change, strength, self.negative)
        yield generator.edits(*how)
      else:
        walked = (generator, *given, self.invert, captions, keys, image, strength)
        yield inversion.edit_by_inversion(*walked, self.vary, self.negative)

    return Images(captions, list(range(num)), num, draw)


def _sides(outpaint: str) -> list[int]:
  try:
    sides = [int(word) for word in outpaint.split(",")]
    if len(sides) != 4 or min(sides) < 0:
      raise ValueError
  except ValueError:
    raise InputError(
      f"--outpaint {outpaint!r} must be four numbers of pixels: left, top, right"
      " and bottom, as in 0,0,32,0"
    ) from None
  return sides


def _fetched(file: str | os.PathLike, name: str) -> pathlib.Path:
  return copies.fetched(files.path(file, name))
