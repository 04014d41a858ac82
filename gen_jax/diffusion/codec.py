"""Codecs: the space that diffusion lives in.

    encode(frozen, x, keys) -> z        decode(frozen, z) -> x

Pixel diffusion uses `identity` or `patches`, latent diffusion an autoencoder's pair
whose weights come in as `frozen`; the diffusion task is the same for all.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import ranges, rng
from gen_jax.types import Array, InputError, PyTree

Shape = tuple[int, ...]


class Codec(NamedTuple):
  """Pure functions between data x and the space z of the diffusion.

  Attributes:
    encode: (frozen, x [B, H, W, C], keys [B]) -> z [B, h, w, Z].
    decode: (frozen, z) -> x.
    shape: that of one z, from that of one x.
    init: key -> frozen, of the right shapes; boxed with axis names where it has any.
    stored: (frozen, moments, keys) -> z, from the posterior's moments read from disk.
    code: (frozen, x) -> [B, h, w, Z]: the posterior's mean, unscaled.
  """

  encode: Callable[[PyTree, Array, Array], Array]
  decode: Callable[[PyTree, Array], Array]
  shape: Callable[[Shape], Shape] = lambda shape: shape
  init: Callable[[Array], PyTree] = lambda key: {}
  stored: Callable[[PyTree, Array, Array], Array] | None = None
  code: Callable[[PyTree, Array], Array] = lambda frozen, x: x


def identity() -> Codec:
  """z = x: diffusion in pixels."""
  return affine(0.0, 1.0)


def affine(shift: ranges.Finite | Array, scale: ranges.NotZero | Array) -> Codec:
  """z = (x - shift) / scale, for data of known mean and standard deviation.

  >>> affine(1.0, 2.0).decode({}, affine(1.0, 2.0).encode({}, 5.0, None))
  5.0
  """
  return Codec(
    encode=lambda frozen, x, keys: (x - shift) / scale,
    decode=lambda frozen, z: z * scale + shift,
  )


@ranges.checked
def patches(side: ranges.Size) -> Codec:
  """Folds each patch of side x side pixels into one pixel of side^2 C channels.

  Lossless: the same diffusion on a smaller image.

  Raises:
    InputError: a side below 1; at a call, an image size that `side` does not divide.

  Source: Hoogeboom et al. 2023 (arXiv:2301.11093), "Avoiding high resolution feature
  maps".
  """

  def shape(size: Shape) -> Shape:
    *batch, height, width, channels = size
    if height % side or width % side:
      raise InputError(
        f"an image of {width}x{height} has no whole patches of {side}x{side}"
        " (task.codec.side); crop it"
      )
    return (*batch, height // side, width // side, side * side * channels)

  def fold(x: Array) -> Array:
    batch_size, height, width, size = shape(x.shape)
    x = x.reshape(batch_size, height, side, width, side, -1)
    return jnp.swapaxes(x, 2, 3).reshape(batch_size, height, width, size)

  def unfold(z: Array) -> Array:
    batch_size, height, width, _ = z.shape
    z = z.reshape(batch_size, height, width, side, side, -1)
    z = jnp.swapaxes(z, 2, 3)
    return z.reshape(batch_size, height * side, width * side, -1)

  return Codec(
    encode=lambda frozen, x, keys: fold(x),
    decode=lambda frozen, z: unfold(z),
    shape=shape,
    code=lambda frozen, x: fold(x),
  )


def latent(
  encode: Callable[[PyTree, Array], tuple[Array, Array]],
  decode: Callable[[PyTree, Array], Array],
  shape: Callable[[Shape], Shape],
  init: Callable[[Array], Any],
) -> Codec:
  """A draw from an autoencoder's posterior, each channel scaled to mean 0, variance 1.

  `frozen` is {'autoencoder': weights, 'mean': [Z], 'std': [Z]}: the latents' measured
  statistics are stored with the weights.

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
    mean, std = jnp.split(moments, 2, -1)
    return drawn(frozen, mean, std, keys)

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
    code=lambda frozen, x: encode(frozen["autoencoder"], x)[0],
  )


def tiled(codec: Codec, side: int) -> Codec:
  """The codec with tiled decoding: memory for one tile, not for the whole of z.

  Tiles of side x side cover z, overlap by at least a quarter and are blended by linear
  ramps. A pixel equals the untiled one if every tile that holds it also holds its
  receptive field. Norms and attention over the whole image see one tile only: their
  result is close, not equal.
  """

  def decode(frozen, z):
    if max(z.shape[1:3]) <= side:
      return codec.decode(frozen, z)
    height, width = (min(side, length) for length in z.shape[1:3])

    def piece(y, x):
      size = (z.shape[0], height, width, z.shape[3])
      return codec.decode(frozen, jax.lax.dynamic_slice(z, (0, y, x, 0), size))

    shape = jax.eval_shape(piece, 0, 0).shape
    factor = shape[1] // height
    rows, columns = (_windows(length, side, factor) for length in z.shape[1:3])

    def add(image, at):
      i, k = at
      y, x, down, across = rows[0][i], columns[0][k], rows[1][i], columns[1][k]
      part = piece(y, x) * jnp.outer(down, across)[None, :, :, None]
      start = (0, factor * y, factor * x, 0)
      old = jax.lax.dynamic_slice(image, start, shape)
      return jax.lax.dynamic_update_slice(image, old + part, start), None

    pairs = jnp.indices((len(rows[0]), len(columns[0]))).reshape(2, -1)
    size = (shape[0], factor * z.shape[1], factor * z.shape[2], shape[3])
    return jax.lax.scan(add, jnp.zeros(size), tuple(pairs))[0]

  return codec._replace(decode=decode)


def _windows(length: int, side: int, factor: int) -> tuple[Array, Array]:
  """Starts of tiles along an axis, and blending weights, which sum to 1 at each pixel.

  Returns:
    Starts int [n], in latents; weights float32 [n, factor * side], of pixels.
  """
  side = min(side, length)
  overlap = side // 4
  num = 1 if side == length else -(-(length - overlap) // (side - overlap))
  starts = np.round(np.linspace(0, length - side, num)).astype(np.int32)
  at = np.arange(factor * side)
  ramp = np.minimum(np.minimum(at, at[::-1]) + 1.0, factor * overlap)
  total = np.zeros(factor * length)
  spans = [slice(factor * s, factor * (s + side)) for s in starts]
  for span in spans:
    total[span] += ramp
  weights = np.stack([ramp / total[span] for span in spans])
  return jnp.asarray(starts), jnp.asarray(weights, jnp.float32)


def _wide(channels: Array, z: Array) -> Array:
  return jnp.broadcast_to(channels, z.shape)
