"""Editing by inversion, and interpolation between two prompts."""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from gen_jax.inference import image_generator
from gen_jax.tasks import flow
from gen_jax.types import Array, InputError, Params, PyTree


def _check(task) -> None:
  if task.network.config.extra_channels:
    raise InputError("this model draws from an image and a mask: gen-jax edit --mask")


def interpolate(
  generator: image_generator.ImageGenerator,
  params: Params,
  frozen: PyTree,
  ends: tuple[str, str],
  keys: Array,
  num: int,
  negative: str = "",
) -> np.ndarray:
  """uint8 [num, H, W, C], from ends[0] drawn with keys[0] to ends[1] with keys[1].

  Raises:
    InputError: a prompt that is too long, or a model that only edits.
  """
  _check(generator.task)
  shares = np.linspace(0.0, 1.0, num, dtype=np.float32)
  fn = functools.partial(flow.interpolate, generator.task, generator.sampling)
  run = jax.jit(fn, static_argnames="shape")

  def draw(index, first, second, against):
    pairs = tuple(generator.place(keys[np.full(len(index), i)]) for i in (0, 1))
    both, at = (first, second), shares[index]
    return run(params, frozen, both, pairs, at, shape=generator.shape, negative=against)

  return generator.in_batches(draw, *([text] * num for text in (*ends, negative)))


def edit_by_inversion(
  generator: image_generator.ImageGenerator,
  params: Params,
  frozen: PyTree,
  source: str,
  captions: Sequence[str],
  keys: Array,
  image: np.ndarray,
  strength: float = 1.0,
  vary: float = 0.0,
  negative: str = "",
) -> np.ndarray:
  """uint8 [N, H, W, C]: an image of `source`, inverted and drawn for each caption.

  Args:
    image: uint8 [H, W, C].
    strength, vary: see `flow.redraw`.

  Raises:
    InputError: see `between`; strength or vary outside [0, 1], or sides that do not
      fit.
  """
  _check(generator.task)
  for name, share in (("strength", strength), ("vary", vary)):
    if not 0 <= share <= 1:
      raise InputError(f"{name}={share} must be in [0, 1]")
  if vary and strength < 1:
    raise InputError(f"vary={vary} turns all of the noise: leave strength at 1")
  image_generator.latent_shape(generator.task, image.shape)
  pixels = image.astype(np.float32) / 127.5 - 1.0
  run = jax.jit(functools.partial(flow.redraw, generator.task, generator.sampling))
  shares = np.float32(strength), np.float32(vary)

  def draw(index, shown, caption, against):
    images = np.repeat(pixels[None], len(index), 0)
    at = generator.place(keys[index])
    return run(params, frozen, shown, caption, at, images, *shares, against)

  size = len(captions)
  return generator.in_batches(draw, [source] * size, captions, [negative] * size)
