"""Image conditions: extra input channels of a UNet, concatenated to x_t.

    condition.extra(codec, frozen, batch, keys) -> [B, h, w, E]

The same function serves training (batch from the data) and editing (the user's image
and mask); the task concatenates.
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
  """Extra input channels.

  Attributes:
    reads: key of the batch's image that they are computed from.
    channels: a latent's number of channels Z -> E.
    extra: (codec, its frozen, batch, keys [B]) -> [B, h, w, E].
  """

  reads: str
  channels: Callable[[int], int]
  extra: Callable[[codecs.Codec, PyTree, Batch, Array], Array]


def instruction() -> Condition:
  """The image to edit: `codec.code` of batch['before'].

  Source: Brooks et al. 2023 (arXiv:2211.09800) section 3.2, as released: the
  posterior's mean, unscaled.
  """
  return Condition(
    "before",
    lambda channels: channels,
    lambda codec, frozen, batch, keys: codec.code(frozen, batch["before"]),
  )


def inpainting() -> Condition:
  """The mask, 1 where to draw, and the latent of the masked image.

  The mask is batch['change'] bool [B, H, W], or drawn at random (`holes`).

  Source: Rombach et al. 2022 (arXiv:2112.10752) section 4.5, as released.
  """

  def extra(codec: codecs.Codec, frozen: PyTree, batch: Batch, keys: Array) -> Array:
    image = batch["image"]
    hole_keys, codec_keys = rng.split(keys, 2)
    change = batch.get("change")
    if change is None:
      change = holes(hole_keys, *image.shape[1:3])
    z = codec.encode(frozen, jnp.where(change[..., None], 0.0, image), codec_keys)
    keep = editing.keep_latents(change, image.shape[1] // z.shape[1])
    return jnp.concatenate([1.0 - keep[..., None].astype(z.dtype), z], -1)

  return Condition("image", lambda channels: channels + 1, extra)


ALL = (instruction, inpainting)


def holes(keys: Array, height: int, width: int, num: int = 4) -> Array:
  """Random masks bool [B, H, W]: all True with probability 1/4, else `num` strokes.

  A stroke covers the pixels within a random radius, 3 to 20 % of the image's sides, of
  a random segment.
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
