"""What a diffusion does along its ODE: inversion, images between two, likelihood."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion import codec, schedule
from gen_jax.diffusion import parameterisation as param
from gen_jax.tasks import conditioning, diffusion, flow
from tests import tiny

NUM = 3
KEYS = tiny.keys(3, NUM)
SAMPLING = diffusion.Sampling(num_steps=10, guidance_scale=2.0)


@pytest.fixture(scope="module")
def setup():
  task, batch = tiny.diffusion_task(), tiny.image_batch()
  params = tiny.weights(task.init, batch)
  captions = [
    conditioning.Caption(*(jnp.asarray(batch[k][i : i + NUM]) for k in names))
    for i in (0, 3)
    for names in [("caption", "caption_mask")]
  ]
  return task, params, captions, batch["image"][:NUM]


def test_redraw(setup):
  """The same caption and noise are the image; each of the other three changes it."""
  task, params, (shown, other), image = setup

  @jax.jit
  def run(caption, strength, vary):
    return flow.redraw(
      task, SAMPLING, params, {}, shown, caption, KEYS, image, strength, vary
    )

  one, none = np.float32(1.0), np.float32(0.0)
  for strength in (one, np.float32(0.5)):  # a byte is 8e-3 wide
    np.testing.assert_allclose(run(shown, strength, none), image, atol=1e-3)
  np.testing.assert_array_equal(run(other, none, none), image)
  whole = np.abs(run(other, one, none) - image).mean()
  half = np.abs(run(other, np.float32(0.4), none) - image).mean()
  assert whole > half > 1e-3
  little = np.abs(run(shown, one, np.float32(0.02)) - image).mean()
  much = np.abs(run(shown, one, one) - image).mean()
  assert much > 2.0 * little > 1e-3
  assert run._cache_size() == 1  # the shares are traced


def test_images_between_begin_and_end_as_drawn(setup):
  task, params, (first, second), _ = setup
  keys = KEYS, tiny.keys(4, NUM)

  @jax.jit
  def run(share):
    return flow.interpolate(
      task, SAMPLING, params, {}, (first, second), keys, share, (8, 8, 1)
    )

  draw = jax.jit(
    lambda caption, k: diffusion.draw(task, SAMPLING, params, {}, caption, k, (8, 8, 1))
  )
  got = np.asarray(run(jnp.array([0.0, 1.0, 0.5])))
  ends = [np.asarray(draw(c, k)) for c, k in zip((first, second), keys, strict=True)]
  np.testing.assert_allclose(got[0], ends[0][0], atol=1e-4)
  np.testing.assert_allclose(got[1], ends[1][1], atol=1e-4)
  assert min(np.abs(got[2] - end[2]).mean() for end in ends) > 1e-2


@pytest.mark.parametrize(
  "space", [codec.identity(), codec.affine(0.2, 0.5)], ids=["pixels", "affine"]
)
def test_bits_per_dim_of_gaussian_pixels(space):
  """-log2 of each byte's share of the bell curve, in whatever units the codec has."""
  mean, std, process = 0.1, 0.7, schedule.Cosine()
  scale = space.decode({}, 1.0) - space.decode({}, 0.0)
  middle, width = (mean - space.decode({}, 0.0)) / scale, std / scale

  def denoise(x, t):
    alpha, sigma = (f(t)[:, None, None, None] for f in (process.alpha, process.sigma))
    residual = (x - alpha * middle) / ((alpha * width) ** 2 + sigma**2)
    return param.Prediction(middle + alpha * width**2 * residual, sigma * residual)

  task = types.SimpleNamespace(
    codec=space,
    schedule=process,
    conditioning=conditioning.Unconditional(),
    denoiser=lambda *_: denoise,
  )
  batch = tiny.image_batch()
  levels = np.random.default_rng(0).integers(0, 256, (tiny.BATCH, 8, 8, 1))
  batch["image"] = (levels / 127.5 - 1.0).astype(np.float32)
  run = jax.jit(
    lambda b: flow.bits_per_dim(task, {}, {}, b, tiny.keys(), 24).integrate()
  )
  share = np.exp(-0.5 * ((batch["image"] - mean) / std) ** 2) / (
    127.5 * std * np.sqrt(2.0 * np.pi)
  )
  wanted = -np.log2(share).mean((1, 2, 3))
  np.testing.assert_allclose(run(batch), wanted, atol=5e-3)


def test_bits_per_dim_of_a_network_that_knows_nothing():
  """Its v is 0, so that it draws plain noise: pixels cost what that makes of them."""
  task, batch = tiny.diffusion_task(), tiny.image_batch()
  params = jax.tree.map(jnp.zeros_like, tiny.weights(task.init, batch))
  run = jax.jit(
    lambda b: flow.bits_per_dim(task, params, {}, b, tiny.keys(), 2).integrate()
  )
  got = run(batch)
  nats = 0.5 * (batch["image"] ** 2 + np.log(2.0 * np.pi)).mean((1, 2, 3))
  np.testing.assert_allclose(got, nats / np.log(2.0) + np.log2(127.5), atol=5e-3)
