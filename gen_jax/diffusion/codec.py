"""Codecs: the space that diffusion lives in.

    encode(frozen, x, key) -> z        decode(frozen, z) -> x

Pixel diffusion uses `identity`, latent diffusion an autoencoder's pair whose weights
come in as `frozen`; the diffusion task is the same for both.
"""

from collections.abc import Callable
from typing import NamedTuple

from gen_jax.types import Array, PyTree


class Codec(NamedTuple):
  """A pair of pure functions between data x and the space z of the diffusion."""

  encode: Callable[[PyTree, Array, Array], Array]
  decode: Callable[[PyTree, Array], Array]


def identity() -> Codec:
  """z = x: diffusion in pixels."""
  return affine(0.0, 1.0)


def affine(shift: float | Array, scale: float | Array) -> Codec:
  """z = (x - shift) / scale, for data whose mean and spread are known.

  >>> affine(1.0, 2.0).decode({}, affine(1.0, 2.0).encode({}, 5.0, None))
  5.0
  """
  return Codec(
    encode=lambda frozen, x, key: (x - shift) / scale,
    decode=lambda frozen, z: z * scale + shift,
  )
