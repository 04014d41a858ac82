"""Codecs: the space that diffusion lives in.

    encode(frozen, x, keys) -> z        decode(frozen, z) -> x

Pixel diffusion uses `identity`, latent diffusion an autoencoder's pair whose weights
come in as `frozen`; the diffusion task is the same for both.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from gen_jax import rng
from gen_jax.types import Array, PyTree

Shape = tuple[int, ...]


class Codec(NamedTuple):
  """Pure functions between data x and the space z of the diffusion.

  Attributes:
    encode: (frozen, x [B, H, W, C], keys [B]) -> z [B, h, w, Z].
    decode: (frozen, z) -> x.
    shape: that of one z, from that of one x.
    init: key -> frozen, of the right shapes; boxed with axis names where it has any.
    stored: (frozen, moments, keys) -> z: of what `encode` would find, kept on disk.
  """

  encode: Callable[[PyTree, Array, Array], Array]
  decode: Callable[[PyTree, Array], Array]
  shape: Callable[[Shape], Shape] = lambda shape: shape
  init: Callable[[Array], PyTree] = lambda key: {}
  stored: Callable[[PyTree, Array, Array], Array] | None = None


def identity() -> Codec:
  """z = x: diffusion in pixels."""
  return affine(0.0, 1.0)


def affine(shift: float | Array, scale: float | Array) -> Codec:
  """z = (x - shift) / scale, for data whose mean and spread are known.

  >>> affine(1.0, 2.0).decode({}, affine(1.0, 2.0).encode({}, 5.0, None))
  5.0
  """
  return Codec(
    encode=lambda frozen, x, keys: (x - shift) / scale,
    decode=lambda frozen, z: z * scale + shift,
  )


def latent(
  encode: Callable[[PyTree, Array], tuple[Array, Array]],
  decode: Callable[[PyTree, Array], Array],
  shape: Callable[[Shape], Shape],
  init: Callable[[Array], Any],
) -> Codec:
  """A draw from an autoencoder's posterior, each channel to mean 0 and variance 1.

  `frozen` is {'autoencoder': weights, 'mean': [Z], 'std': [Z]}: the statistics of the
  latents are measured and travel with the weights.

  Args:
    encode: (weights, x) -> posterior's mean and std, [B, h, w, Z] each.
    decode: (weights, latent) -> x.
    shape: of one latent, from that of one x.
    init: key -> weights.

  Source: Rombach et al. 2022 (arXiv:2112.10752) appendix G, which scales by one number.
  """

  def drawn(frozen, mean, std, keys):
    z = mean + std * rng.normal(keys, mean.shape[1:])
    return (z - _wide(frozen["mean"], z)) / _wide(frozen["std"], z)

  def stored(frozen, moments, keys):
    return drawn(frozen, *jnp.split(moments, 2, -1), keys)

  def start(key):
    size = shape((1 << 16, 1 << 16, 3))[-1]
    moments = {"mean": jnp.zeros(size), "std": jnp.ones(size)}
    return {"autoencoder": init(key), **moments}

  return Codec(
    encode=lambda frozen, x, keys: drawn(
      frozen, *encode(frozen["autoencoder"], x), keys
    ),
    decode=lambda frozen, z: decode(
      frozen["autoencoder"], z * _wide(frozen["std"], z) + _wide(frozen["mean"], z)
    ),
    shape=shape,
    init=start,
    stored=stored,
  )


def _wide(channels: Array, z: Array) -> Array:
  return jnp.broadcast_to(channels, z.shape)
