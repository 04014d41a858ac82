"""Autoencoders: what the loss is made of, who learns from what, and what is learned."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax import rng, sharding
from gen_jax.diffusion import codec
from gen_jax.models import autoencoder, discriminator
from gen_jax.tasks import autoencoder as tasks
from tests import tiny

CONFIG = autoencoder.Config(1, 2, 8, (1, 2), 1, num_groups=4)
CRITIC = discriminator.Discriminator(discriminator.Config(1, 8, 2, 4))
NET = autoencoder.Autoencoder(CONFIG)
PLAIN = tasks.Autoencode(NET, kl_weight=0.01)
BOTH = tasks.Autoencode(NET, 0.01, CRITIC, feature_weight=0.3, adversarial_weight=0.2)


@pytest.fixture(scope="module")
def setup():
  batch = {k: jnp.asarray(v) for k, v in tiny.image_batch().items()}
  return tiny.weights(BOTH.init, batch), batch


@functools.partial(jax.jit, static_argnames=("task", "train"))
def loss(task, params, batch, train=True):
  out = task.loss(params, {}, batch, tiny.keys(), train=train)
  return out.loss.value, {k: v.value for k, v in out.metrics.items()}


@functools.partial(jax.jit, static_argnums=0)
def apply(method, params, x):
  return NET.apply({"params": params["autoencoder"]}, x, method=method)


def test_the_code_is_smaller_and_its_statistics_are_those_of_a_gaussian(setup):
  params, batch = setup
  posterior = apply("encode", params, batch["image"])
  assert posterior.mean.shape == posterior.std.shape == (tiny.BATCH, 4, 4, 2)
  assert apply("decode", params, posterior.mean).shape == batch["image"].shape
  # KL(N(m, s) | N(0, 1)), by the densities themselves at many draws.
  m, s = (np.asarray(x[0], np.float64) for x in posterior)
  z = m + s * np.random.default_rng(0).standard_normal((100_000, *m.shape))
  sampled = (-np.log(s) - 0.5 * ((z - m) / s) ** 2 + 0.5 * z**2).mean()
  one = {**batch, "weights": jnp.eye(tiny.BATCH)[0]}
  assert abs(loss(PLAIN, params, one)[1]["kl"] - sampled) < 0.01 * max(1, sampled)


def test_the_loss_adds_up(setup):
  params, batch = setup
  value, found = loss(PLAIN, params, batch, train=False)
  np.testing.assert_allclose(value, found["l1"] + 0.01 * found["kl"], rtol=1e-6)
  whole, seen = loss(BOTH, params, batch)
  plain, _ = loss(PLAIN, params, batch)
  scores = float(
    jnp.mean(
      jnp.where(
        batch["weights"] > 0, _scores(params, batch).mean((1, 2)), 0.0
      )
    )
  ) * tiny.BATCH / float(batch["weights"].sum())  # fmt: skip
  more = seen["hinge"] + 0.3 * seen["features"] - 0.2 * scores
  np.testing.assert_allclose(whole - plain, more, rtol=1e-4)


def _scores(params, batch):
  mean, std = apply("encode", params, batch["image"])
  y = apply("decode", params, mean + std * rng.normal(tiny.keys(), mean.shape[1:]))
  return jax.jit(CRITIC.apply)({"params": params["discriminator"]}, y)[0]


def test_the_critic_and_the_autoencoder_pull_each_its_own_way(setup):
  """The critic's gradient is that of its hinge; the autoencoder never feels that."""
  params, batch = setup

  @jax.jit
  def gradients(params):
    whole = jax.grad(lambda p: loss(BOTH, p, batch)[0])(params)
    return whole, jax.grad(lambda p: loss(BOTH, p, batch)[1]["hinge"])(params)

  whole, hinge = gradients(params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    whole["discriminator"],
    hinge["discriminator"],
  )
  assert not any(np.abs(x).max() for x in jax.tree.leaves(hinge["autoencoder"]))
  assert all(np.abs(x).max() for x in jax.tree.leaves(hinge["discriminator"]))


def test_it_learns_images_better_than_their_mean(setup):
  _, batch = setup
  row = np.arange(8) / 8.0
  phases = np.random.default_rng(0).uniform(0, 6, (2, tiny.BATCH, 1, 1))
  waves = np.sin(6 * row[:, None] + phases[0]) * np.cos(3 * row + phases[1])
  batch = {**batch, "image": jnp.asarray(waves[..., None], jnp.float32)}
  params = jax.jit(lambda: sharding.unbox(PLAIN.init(jax.random.key(0), batch)))()
  optimizer = optax.adam(1e-2)

  @jax.jit
  def step(params, state):
    grads = jax.grad(lambda p: loss_value(p, True))(params)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state

  def loss_value(p, train):
    return PLAIN.loss(p, {}, batch, tiny.keys(), train=train).loss.value

  state = optimizer.init(params)
  for _ in range(200):
    params, state = step(params, state)
  counted = np.asarray(batch["image"])[np.asarray(batch["weights"]) > 0]
  baseline = np.abs(counted - counted.mean(0)).mean()
  assert loss(PLAIN, params, batch, train=False)[1]["l1"] < 0.5 * baseline


def test_latents_have_mean_0_and_variance_1_and_come_back():
  """A codec of a known posterior: normalised in both directions, noise by key."""
  mean, std = jnp.array([3.0, -1.0]), jnp.array([2.0, 0.5])

  def halves(weights, x):
    return (x[..., :2] * weights, jnp.zeros_like(x[..., :2]))

  made = codec.latent(
    halves, lambda weights, z: z / weights, lambda s: s, lambda k: 4.0
  )
  frozen = {"autoencoder": 4.0, "mean": mean, "std": std}
  x = jax.random.normal(jax.random.key(0), (5, 3, 3, 2))
  z = made.encode(frozen, x, tiny.keys(num=5))
  np.testing.assert_allclose(
    z, (4.0 * x - mean[None, None, None]) / std[None, None, None]
  )
  np.testing.assert_allclose(made.decode(frozen, z), x, atol=1e-6)
  moments = jnp.concatenate([4.0 * x, jnp.full_like(x, 0.7)], -1)
  stored = made.stored(frozen, moments, tiny.keys(num=5))
  noise = (stored - z) * std[None, None, None] / 0.7
  np.testing.assert_allclose(noise, rng.normal(tiny.keys(num=5), (3, 3, 2)), atol=1e-5)
