"""Captions in, images out: the strings and pixels around the compiled sampling loop."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gen_jax import numbers, tree
from gen_jax.inference import prompts
from gen_jax.system import progress
from gen_jax.tasks import diffusion
from gen_jax.types import Array, InputError, Params, PyTree


def to_uint8(images: Array | np.ndarray) -> np.ndarray:
  """Pixels in about [-1, 1] as uint8, clipped."""
  found = np.asarray(tree.fetch(images))
  if np.isnan(found).any():
    raise InputError(
      "an image has values that are no numbers: draw with a lower guidance_scale or"
      " another sampler, or look at the weights"
    )
  return np.clip(np.round(found * 127.5 + 127.5), 0, 255).astype(np.uint8)


def latent_shape(task: diffusion.Diffusion, image: tuple[int, ...]) -> tuple[int, ...]:
  """[h, w, Z] of the latents of an image [H, W, C].

  Raises:
    InputError: sides that the codec or the network cannot divide.
  """
  (height, width), latent = image[:2], task.codec.shape(image)
  factor = height // max(latent[0], 1)
  if (latent[0] * factor, latent[1] * factor) != (height, width):
    raise InputError(
      f"the image's sides {width}x{height} must be divisible by {factor}; crop it"
    )
  task.network.config.check_side(*latent[:2])
  return latent


@dataclasses.dataclass(frozen=True, eq=False)
class ImageGenerator:
  """Draws images for prompts, in batches of one fixed size; compiled once.

  Attributes:
    task: the diffusion task.
    read: makes a prompt of arrays [N, ...] from N strings, see `inference.prompts`.
    sampling: how to draw.
    shape: of one latent, [H, W, C].
    batch_size: images drawn at once; no image depends on it.
    place: shards arrays [batch_size, ...] over the devices.
  """

  task: diffusion.Diffusion
  read: prompts.Read
  sampling: diffusion.Sampling
  shape: tuple[int, ...]
  batch_size: int = 50
  place: Callable[[PyTree], PyTree] = lambda tree: tree
  _draw: numbers.Jitted = dataclasses.field(init=False, repr=False)
  _edit: numbers.Jitted = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    draw = functools.partial(diffusion.draw, self.task, self.sampling)
    edit = functools.partial(diffusion.edit, self.task, self.sampling)
    object.__setattr__(self, "_draw", numbers.jit(draw, static_argnames="shape"))
    object.__setattr__(self, "_edit", numbers.jit(edit))

  def images(
    self,
    params: Params,
    frozen: PyTree,
    captions: Sequence[str],
    keys: Array,
    negative: str = "",
  ) -> np.ndarray:
    """uint8 [N, H, W, C], image i for captions[i] and keys[i].

    Args:
      negative: the negative prompt.

    Raises:
      InputError: a caption that is too long for the text encoder, an unknown class, or
        a model that only edits.
    """
    return np.concatenate(list(self.batches(params, frozen, captions, keys, negative)))

  def batches(
    self,
    params: Params,
    frozen: PyTree,
    captions: Sequence[str],
    keys: Array,
    negative: str = "",
    start: int = 0,
  ) -> Iterator[np.ndarray]:
    """Yields the images of `images` from number `start` on, batch by batch.

    Args:
      start: a multiple of `batch_size`, so that batches are the same as without it.
    """
    if self.task.network.config.extra_channels:
      raise InputError("this model draws from an image: gen-jax edit --image")

    def draw(index, *captions):
      caption, against = captions
      at = self.place(keys[index])
      return self._draw(params, frozen, caption, at, shape=self.shape, negative=against)

    return self._batches(draw, captions, [negative] * len(captions), start=start)

  def edits(
    self,
    params: Params,
    frozen: PyTree,
    captions: Sequence[str],
    keys: Array,
    image: np.ndarray,
    change: np.ndarray,
    strength: float,
    negative: str = "",
  ) -> np.ndarray:
    """uint8 [N, H, W, C]: edited images, one for each caption and key.

    Args:
      image: uint8 [N, H, W, C], or [H, W, C] for all.
      change: bool [N, H, W] or [H, W]; every pixel outside comes back bit for bit.
      strength: in [0, 1]: 0 returns the image, 1 starts from noise.

    Raises:
      InputError: see `images`; or a strength or image that does not fit.
    """
    if not 0 <= strength <= 1:
      raise InputError(f"strength={strength} must be in [0, 1]")
    height, width, channels = image.shape[-3:]
    if change.shape[-2:] != (height, width):
      raise InputError(
        f"the mask is {change.shape[-1]}x{change.shape[-2]}, the image"
        f" {width}x{height}; they must be of one size"
      )
    latent_shape(self.task, (height, width, channels))
    image = np.broadcast_to(image, (len(captions), height, width, channels))
    change = np.broadcast_to(change, image.shape[:-1])

    def draw(index, caption, against):
      return self._edit(
        params,
        frozen,
        caption,
        self.place(keys[index]),
        image[index].astype(np.float32) / 127.5 - 1.0,
        change[index],
        np.float32(strength),
        against,
      )

    drawn = self.in_batches(draw, captions, [negative] * len(captions))
    changed = change[..., None] & (strength > 0)
    return np.where(changed, drawn, image)

  def in_batches(self, draw, *texts: Sequence[str]) -> np.ndarray:
    """draw(indices, captions, ...) as uint8, for N texts of each kind, in batches."""
    return np.concatenate(list(self._batches(draw, *texts)))

  def _batches(self, draw, *texts: Sequence[str], start: int = 0):
    """Yields the batches of `in_batches` from image `start` on."""
    for kind in texts:
      self.read(kind)  # raises before anything is drawn
    num = len(texts[0])
    size = min(self.batch_size, num)
    total = -(-num // size)
    firsts = range(start, num, size)
    for first in progress.track(firsts, total, "batches drawn", start // size):
      index = np.minimum(np.arange(first, first + size), num - 1)
      given = (self.place(self.read([kind[i] for i in index])) for kind in texts)
      yield to_uint8(tree.fetch(draw(index, *given))[: num - first])
