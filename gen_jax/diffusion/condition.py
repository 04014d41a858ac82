"""Conditions beside x_t: what a UNet with extra channels sees of an image.

    condition.extra(codec, frozen, batch, keys) -> [B, h, w, E]

The same function serves training, where the batch comes from data, and editing, where
it is the user's image and mask; the task concatenates.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen_jax import rng
from gen_jax.diffusion import codec as codecs
from gen_jax.diffusion import editing
from gen_jax.types import Array, Batch, PyTree


class Condition(NamedTuple):
  """What goes beside x_t.

  Attributes:
    reads: the image of the batch that it is made of.
    channels: number Z of a latent's channels -> E.
    extra: (codec, its frozen, batch, keys [B]) -> [B, h, w, E].
  """

  reads: str
  channels: Callable[[int], int]
  extra: Callable[[codecs.Codec, PyTree, Batch, Array], Array]


def instruction() -> Condition:
  """The image that an instruction is about: the code of batch['before'].

  Source: Brooks et al. 2023 (arXiv:2211.09800) section 3.2, as released: the code is
  neither drawn nor scaled.
  """
  return Condition(
    "before",
    lambda channels: channels,
    lambda codec, frozen, batch, keys: codec.code(frozen, batch["before"]),
  )


def inpainting() -> Condition:
  """A hole and the image around it: mask, 1 where to draw, and masked image.

  The hole is batch['change'] bool [B, H, W], or drawn at random (`holes`).

  Source: Rombach et al. 2022 (arXiv:2112.10752) section 4.5, as released.
  """

  def extra(codec: codecs.Codec, frozen: PyTree, batch: Batch, keys: Array) -> Array:
    image = batch["image"]
    hole_keys, codec_keys = rng.split(keys, 2)
    change = batch.get("change")
    if change is None:
      change = holes(hole_keys, *image.shape[1:3])
    rest = codec.encode(frozen, jnp.where(change[..., None], 0.0, image), codec_keys)
    keep = editing.keep_latents(change, image.shape[1] // rest.shape[1])
    return jnp.concatenate([1.0 - keep[..., None].astype(rest.dtype), rest], -1)

  return Condition("image", lambda channels: channels + 1, extra)


ALL = (instruction, inpainting)


def holes(keys: Array, height: int, width: int, num: int = 4) -> Array:
  """Random masks bool [B, H, W]: everything, one time in four, or `num` thick strokes.

  A stroke is what is nearer to a random segment than a random radius of 3 to 20 % of
  the image's sides.
  """
  y, x = jnp.meshgrid(
    (jnp.arange(height) + 0.5) / height,
    (jnp.arange(width) + 0.5) / width,
    indexing="ij",
  )
  at = jnp.stack([x, y], -1)[:, :, None]  # [H, W, 1, 2]

  def one(key):
    ends, radii, whole = jax.random.split(key, 3)
    start, end = jax.random.uniform(ends, (2, 1, 1, num, 2))
    radius = jax.random.uniform(radii, (1, 1, num), minval=0.03, maxval=0.2)
    along = end - start
    share = jnp.sum((at - start) * along, -1) / jnp.sum(along**2, -1)
    nearest = start + jnp.clip(share, 0.0, 1.0)[..., None] * along
    strokes = jnp.linalg.norm(at - nearest, axis=-1) < radius
    return strokes.any(-1) | (jax.random.uniform(whole) < 0.25)

  return jax.vmap(one)(keys)
