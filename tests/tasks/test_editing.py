"""Editing: its limits are the image itself and text-to-image, exactly."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import sharding, types
from gen_jax.diffusion import condition, editing, multistep, samplers
from gen_jax.models import unet
from gen_jax.nn import linear
from gen_jax.tasks import conditioning, diffusion
from tests import tiny

KEYS = tiny.keys(3)
SAMPLING = {
  name: diffusion.Sampling(sampler, num_steps=4, guidance_scale=2.0)
  for name, sampler in (("ddim", samplers.ddim), ("dpmpp_2m", multistep.dpmpp_2m))
}


@pytest.fixture(scope="module")
def setup():
  task, batch = tiny.diffusion_task(), tiny.image_batch()
  params = tiny.weights(task.init, batch)
  caption = conditioning.Caption(batch["caption"], batch["caption_mask"])
  return task, params, caption, batch["image"]


def make_edit(setup, name):
  task, params, caption, image = setup

  @jax.jit
  def run(change, strength, rows):
    given = jax.tree.map(lambda x: jnp.asarray(x)[rows], caption)
    return diffusion.edit(
      task, SAMPLING[name], params, {}, given, KEYS[rows],
      jnp.asarray(image)[rows], change[rows], strength,
    )  # fmt: skip

  return run


EVERYWHERE = np.ones((tiny.BATCH, 8, 8), np.bool_)
ALL = np.arange(tiny.BATCH)


@pytest.mark.parametrize("name", SAMPLING)
def test_limits(setup, name):
  task, params, caption, image = setup
  run = make_edit(setup, name)
  np.testing.assert_array_equal(run(EVERYWHERE, np.float32(0.0), ALL), image)
  np.testing.assert_array_equal(run(~EVERYWHERE, np.float32(1.0), ALL), image)
  drawn = jax.jit(
    lambda: diffusion.draw(task, SAMPLING[name], params, {}, caption, KEYS, (8, 8, 1))
  )()
  whole = run(EVERYWHERE, np.float32(1.0), ALL)
  np.testing.assert_allclose(whole, drawn, rtol=1e-5, atol=1e-5)
  assert np.abs(run(EVERYWHERE, np.float32(0.5), ALL) - drawn).max() > 0.1
  assert run._cache_size() == 1  # strength and mask are traced


def test_a_mask_holds_what_is_outside_and_each_example_is_its_own(setup):
  *_, image = setup
  run = make_edit(setup, "ddim")
  change = np.random.default_rng(0).random(EVERYWHERE.shape) < 0.5
  out = np.asarray(run(change, np.float32(0.8), ALL))
  np.testing.assert_array_equal(out[~change], image[~change])
  assert (np.abs(out - image)[change] > 1e-3).mean() > 0.9
  one = run(change, np.float32(0.8), ALL[3:4])
  np.testing.assert_allclose(one, out[3:4], atol=1e-5)


def test_more_strength_keeps_less(setup):
  *_, image = setup
  run = make_edit(setup, "ddim")
  far = [
    float(np.abs(run(EVERYWHERE, np.float32(s), ALL) - image).mean())
    for s in (0.05, 0.3, 1.0)
  ]
  assert far[0] < far[1] < far[2]


def test_a_latent_is_kept_if_none_of_its_pixels_changes():
  change = np.zeros((1, 4, 4), np.bool_)
  change[0, 1, 2] = True
  keep = editing.keep_latents(jnp.asarray(change), 2)
  np.testing.assert_array_equal(keep, [[[True, False], [True, True]]])


def instructed(**changes):
  """A task that sees the image before."""
  config = unet.Config(1, 8, (1,), 1, (), num_heads=2, num_groups=4, extra_channels=1)
  fields = dict(network=unet.UNet(config), condition=condition.instruction())
  return tiny.diffusion_task(**{**fields, "condition_drop_prob": 0.1, **changes})


def test_a_wider_unet_starts_as_what_it_was(setup):
  """Extra channels that count nothing: the base, whatever is in them."""
  base, params, caption, image = setup
  task = instructed()
  wider = {**params, "unet": linear.widen(params["unet"], "conv_in", 1)}
  t = jnp.linspace(0.1, 0.9, tiny.BATCH)
  extra = 100.0 * jnp.asarray(image)
  one = jax.jit(base.denoiser(params, {}, caption))(image, t)
  other = jax.jit(task.denoiser(wider, {}, caption, extra=extra))(image, t)
  np.testing.assert_allclose(one.x0, other.x0, rtol=1e-5, atol=1e-5)
  abstract = jax.eval_shape(lambda: task.init(jax.random.key(0), tiny.image_batch()))
  shapes = jax.tree.map(jnp.shape, sharding.unbox(abstract))
  assert shapes == jax.tree.map(jnp.shape, wider)


def test_what_is_left_out_in_training():
  """5 % of the captions, 5 % of the images, 5 % both; the rest untouched."""
  task = instructed()
  num = 2000
  u = (jnp.arange(num) + 0.5) / num
  caption = conditioning.Caption(jnp.full((num, 4), 7), jnp.ones((num, 4), bool))
  caption, extra = task._dropped(caption, jnp.ones((num, 2, 2, 1)), u)
  no_words = np.asarray((caption.tokens == 0).all(1))
  no_image = np.asarray((extra == 0).all((1, 2, 3)))
  assert ((caption.tokens == 7).all(1) != no_words).all()
  assert ((extra == 1).all((1, 2, 3)) != no_image).all()
  both = no_words & no_image
  assert [x.sum() for x in (no_words & ~both, no_image & ~both, both)] == [100] * 3


@pytest.mark.long
def test_an_instruction_model_draws_from_the_image(setup):
  """Both scales at 1 are the network alone; the image reaches what is drawn."""
  _, params, caption, image = setup
  task = instructed()
  params = {**params, "unet": linear.widen(params["unet"], "conv_in", 1)}
  kernel = params["unet"]["conv_in"]["kernel"]
  params["unet"]["conv_in"]["kernel"] = kernel + 0.3

  def sample(task, text, image, before):
    sampling = diffusion.Sampling(
      num_steps=2, guidance_scale=text, image_guidance_scale=image
    )
    strength = jnp.float32(1.0)
    return diffusion.edit(
      task, sampling, params, {}, caption, KEYS, before, EVERYWHERE, strength
    )

  whole = dataclasses.replace(task, condition_drop_prob=0.0)
  plain, run = (jax.jit(functools.partial(sample, t)) for t in (whole, task))
  one = run(1.0, 1.0, image)
  np.testing.assert_allclose(one, plain(1.0, 9.0, image), atol=1e-4)
  assert np.abs(run(1.0, 3.0, image) - one).max() > 1e-2
  for scales in ((1.0, 1.0), (3.0, 1.0)):  # known: rungs that cancel are left out
    known = jax.jit(functools.partial(sample, task, *scales))(image)
    np.testing.assert_allclose(known, run(*scales, image), atol=1e-4)
  assert np.abs(run(1.0, 1.0, image[::-1]) - one).max() > 1e-2


def test_prob_of_leaving_out_needs_something_to_leave_out():
  says = "condition_drop_prob=0.1 must be 0 without a condition"
  with pytest.raises(types.InputError, match=says):
    instructed(condition=None)


def test_an_inpainting_model_trains_on_random_holes(setup):
  """Its loss is the base's while nothing is read of what is beside x_t; all will be."""
  base, params, _, _ = setup
  config = unet.Config(1, 8, (1,), 1, (), num_heads=2, num_groups=4, extra_channels=2)
  task = dataclasses.replace(
    base, network=unet.UNet(config), condition=condition.inpainting()
  )
  wider = {**params, "unet": linear.widen(params["unet"], "conv_in", 2)}

  def run(task):
    return jax.jit(
      jax.value_and_grad(
        lambda p: task.loss(p, {}, tiny.image_batch(), KEYS, train=True).loss.total
      )
    )

  value, gradient = run(task)(wider)
  np.testing.assert_allclose(value, run(base)(params)[0], rtol=1e-5)
  kernel = np.asarray(gradient["unet"]["conv_in"]["kernel"])  # x_t, mask, image
  assert np.isfinite(kernel).all()
  assert (np.abs(kernel).max((0, 1, 3)) > 1e-3 * np.abs(kernel).max()).all()
