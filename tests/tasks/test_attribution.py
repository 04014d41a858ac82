"""Attention maps: shares that add up, in the place where the pixel is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import tree
from gen_jax.convert import diffusers_configs
from gen_jax.models import unet
from gen_jax.nn import spatial
from gen_jax.tasks import attribution, conditioning
from gen_jax.types import InputError
from tests import tiny

LEVELS = unet.Config(1, 8, (1, 1), 1, (0, 1), num_heads=2, num_groups=4)


@pytest.fixture(scope="module")
def setup():
  task, batch = tiny.diffusion_task(network=unet.UNet(LEVELS)), tiny.image_batch()
  params = tiny.weights(task.init, batch)
  caption = conditioning.Caption(batch["caption"], jnp.asarray(batch["caption_mask"]))
  z, eps = (
    jnp.asarray(batch["image"]),
    jax.random.normal(jax.random.key(1), (8, 8, 8, 1)),
  )
  t = jnp.linspace(0.1, 0.9, tiny.BATCH)
  maps = jax.jit(lambda p: attribution.attention_maps(task, p, caption, z, eps, t))
  return params, caption, maps


def test_shares_add_up_and_padding_has_none(setup):
  params, caption, maps = setup
  found = np.asarray(maps(params))
  assert found.shape == (tiny.BATCH, 8, 8, 4)
  np.testing.assert_allclose(found.sum(-1), 1.0, rtol=1e-5)
  padding = np.broadcast_to(~caption.mask[:, None, None, :], found.shape)
  assert (found[padding] == 0).all() and (found[~padding] > 0).all()


def test_keys_that_are_all_alike_are_looked_at_alike(setup):
  params, caption, maps = setup
  flat = tree.map_with_path(
    lambda path, x: jnp.zeros_like(x) if "cross_attention/key" in path else x, params
  )
  want = caption.mask / caption.mask.sum(-1, keepdims=True)
  want = np.broadcast_to(want[:, None, None, :], (tiny.BATCH, 8, 8, 4))
  np.testing.assert_allclose(maps(flat), want, rtol=1e-5, atol=1e-7)


def test_by_hand():
  """2x2 pixels spread to 4x4, one of two heads looks: softmax([0, 2 sqrt(4)])."""
  query = np.zeros((1, 4, 2, 4), np.float32)
  query[0, 1, 0] = 1.0  # above on the right
  key = np.zeros((1, 3, 2, 4), np.float32)
  key[0, 1, 0] = 1.0
  mask = jnp.array([[True, True, False]])
  found = attribution._probabilities((query, key), mask, (1, 4, 4, 1))[0]
  share = 1 / (1 + np.exp(-2.0))
  want = (share + 0.5) / 2
  np.testing.assert_allclose(found[0, 3], [1 - want, want, 0], rtol=1e-6)
  for corner in ((0, 0), (3, 0), (3, 3)):
    np.testing.assert_allclose(found[corner], [0.5, 0.5, 0], rtol=1e-6)


def test_maps_and_exports_of_another_attention_are_refused():
  """They would be of softmax, which this UNet does not compute."""
  other = functools.partial(
    spatial.SpatialTransformer, attention_impl=lambda q, kv, mask: q
  )
  config = dataclasses.replace(LEVELS, attention=other)
  task = tiny.diffusion_task(network=unet.UNet(config))
  caption = conditioning.Caption(jnp.zeros((1, 4), int), jnp.ones((1, 4), bool))
  with pytest.raises(InputError, match="softmax"):
    attribution.attention_maps(task, {}, caption, *[jnp.zeros((1, 8, 8, 1))] * 2, 0.5)
  with pytest.raises(InputError, match="attention other than softmax"):
    diffusers_configs.write_unet(config, 8, False, 8)
