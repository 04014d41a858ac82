"""Editing: its limits are the picture itself and text-to-image, exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import sharding
from gen_jax.diffusion import editing, samplers
from gen_jax.tasks import diffusion
from tests import tiny

KEYS = tiny.keys(3)
SAMPLING = {
  name: diffusion.Sampling(sampler, num_steps=4, guidance_scale=2.0)
  for name, sampler in (("ddim", samplers.ddim), ("dpmpp_2m", samplers.dpmpp_2m))
}


@pytest.fixture(scope="module")
def setup():
  task, batch = tiny.diffusion_task(), tiny.image_batch()
  params = jax.jit(lambda key: sharding.unbox(task.init(key, batch)))(jax.random.key(0))
  leaves, treedef = jax.tree.flatten(params)  # not the zeros it starts with
  keys = jax.random.split(jax.random.key(1), len(leaves))
  noisy = [
    x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)
  ]
  caption = diffusion.Caption(batch["caption"], batch["caption_mask"])
  return task, jax.tree.unflatten(treedef, noisy), caption, batch["image"]


def make_edit(setup, name):
  task, params, caption, picture = setup

  @jax.jit
  def run(change, strength, rows):
    given = jax.tree.map(lambda x: jnp.asarray(x)[rows], caption)
    return diffusion.edit(
      task, SAMPLING[name], params, {}, given, KEYS[rows],
      jnp.asarray(picture)[rows], change[rows], strength,
    )  # fmt: skip

  return run


EVERYWHERE = np.ones((tiny.BATCH, 8, 8), np.bool_)
ALL = np.arange(tiny.BATCH)


@pytest.mark.parametrize("name", SAMPLING)
def test_limits(setup, name):
  task, params, caption, picture = setup
  run = make_edit(setup, name)
  np.testing.assert_array_equal(run(EVERYWHERE, np.float32(0.0), ALL), picture)
  np.testing.assert_array_equal(run(~EVERYWHERE, np.float32(1.0), ALL), picture)
  drawn = jax.jit(
    lambda: diffusion.draw(task, SAMPLING[name], params, {}, caption, KEYS, (8, 8, 1))
  )()
  whole = run(EVERYWHERE, np.float32(1.0), ALL)
  np.testing.assert_allclose(whole, drawn, rtol=1e-5, atol=1e-5)
  assert np.abs(run(EVERYWHERE, np.float32(0.5), ALL) - drawn).max() > 0.1
  assert run._cache_size() == 1  # strength and mask are traced


def test_a_mask_holds_what_is_outside_and_each_example_is_its_own(setup):
  *_, picture = setup
  run = make_edit(setup, "ddim")
  change = np.random.default_rng(0).random(EVERYWHERE.shape) < 0.5
  out = np.asarray(run(change, np.float32(0.8), ALL))
  np.testing.assert_array_equal(out[~change], picture[~change])
  assert (np.abs(out - picture)[change] > 1e-3).mean() > 0.9
  one = run(change, np.float32(0.8), ALL[3:4])
  np.testing.assert_allclose(one, out[3:4], atol=1e-5)


def test_more_strength_keeps_less(setup):
  *_, picture = setup
  run = make_edit(setup, "ddim")
  far = [
    float(np.abs(run(EVERYWHERE, np.float32(s), ALL) - picture).mean())
    for s in (0.05, 0.3, 1.0)
  ]
  assert far[0] < far[1] < far[2]


def test_a_latent_is_kept_if_none_of_its_pixels_changes():
  change = np.zeros((1, 4, 4), np.bool_)
  change[0, 1, 2] = True
  keep = editing.keep_latents(jnp.asarray(change), 2)
  np.testing.assert_array_equal(keep, [[[True, False], [True, True]]])
