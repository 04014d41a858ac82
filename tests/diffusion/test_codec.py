"""Patches; tiles: what a decoder that looks nearby gives must not depend on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import types
from gen_jax.diffusion import codec as codecs

KERNEL = jax.random.normal(jax.random.key(1), (3, 3, 3, 2))


def blurring(frozen, z):
  """Looks one latent away; 4 pixels a latent."""
  dims = ("NHWC", "HWIO", "NHWC")
  y = jax.lax.conv_general_dilated(z, KERNEL, (1, 1), "SAME", dimension_numbers=dims)
  return frozen * jnp.repeat(jnp.repeat(jnp.tanh(y), 4, 1), 4, 2)


def pointwise(frozen, z):
  return frozen * jnp.repeat(jnp.repeat(z[..., :2] ** 3, 4, 1), 4, 2)


def codec(decode):
  return codecs.identity()._replace(decode=decode)


@pytest.mark.parametrize("shape", [(9, 16), (16, 9), (8, 21), (5, 4)])
def test_a_pointwise_decoder_does_not_see_tiles(shape):
  """The weights of all tiles at a pixel add up to 1, and each tile is at its place."""
  z = jax.random.normal(jax.random.key(0), (2, *shape, 3))
  tiles = codecs.tiled(codec(pointwise), 8).decode(2.0, z)
  np.testing.assert_allclose(tiles, pointwise(2.0, z), atol=2e-5)


def test_only_pixels_at_the_edge_of_a_tile_see_it():
  z = jax.random.normal(jax.random.key(0), (1, 8, 14, 3))
  apart = np.abs(codecs.tiled(codec(blurring), 8).decode(1.0, z) - blurring(1.0, z))
  columns = apart.max((0, 1, 3)).reshape(14, 4).max(1)
  # Tiles are latents 0 .. 7 and 6 .. 13: 7 is the first one's edge, 6 the second's.
  assert (np.flatnonzero(columns > 1e-5) == [6, 7]).all()
  # The closer to the edge of a tile, the less the tile counts.
  weights = codecs._windows(14, 8, 4)[1]
  assert (np.diff(weights[0, 24:]) < 0).all() and (np.diff(weights[1, :8]) > 0).all()
  np.testing.assert_allclose(np.diff(weights[0, 24:], n=2), 0.0, atol=1e-6)  # linear


def test_tiles_need_the_memory_of_one_tile():
  """A decoder that makes a hundred times as many numbers on its way."""

  def wide(frozen, z):
    many = jnp.einsum("bhwc,ck->bhwk", pointwise(1.0, z), frozen)
    return jnp.einsum("bhwk,ck->bhwc", jnp.sort(many, -1), frozen)

  def temporary(decode):
    frozen, z = jnp.ones((2, 200)), jnp.ones((1, 32, 32, 3))
    lowered = jax.jit(decode).lower(frozen, z)
    return lowered.compile().memory_analysis().temp_size_in_bytes

  whole, tiles = temporary(wide), temporary(codecs.tiled(codec(wide), 8).decode)
  assert tiles < whole / 8


def test_a_patch_is_one_pixel_of_many_channels():
  x = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
  patches = codecs.patches(2)
  z = patches.encode({}, x, None)
  assert z.shape == patches.shape(x.shape) == (2, 2, 3, 12)
  np.testing.assert_array_equal(z[1, 1, 2], x[1, 2:4, 4:6].reshape(12))
  np.testing.assert_array_equal(patches.decode({}, z), x)
  np.testing.assert_array_equal(patches.code({}, x), z)


def test_patches_decode_in_tiles_as_they_do_whole():
  z = np.random.default_rng(0).normal(size=(2, 7, 5, 12)).astype(np.float32)
  patches = codecs.patches(2)
  tiles = codecs.tiled(patches, 4).decode({}, z)
  np.testing.assert_allclose(tiles, patches.decode({}, z), atol=1e-6)


def test_images_of_no_whole_patches_are_refused():
  with pytest.raises(types.InputError, match="6x4 has no whole patches of 4x4"):
    codecs.patches(4).shape((4, 6, 3))
  with pytest.raises(types.InputError, match=r"patches.side=0 must be at least 1"):
    codecs.patches(0)
