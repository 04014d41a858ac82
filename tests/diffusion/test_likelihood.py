"""Log-density: that of Gaussian data exactly, and its entropy on average."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import rng
from gen_jax.diffusion import likelihood
from gen_jax.diffusion import parameterisation as param
from gen_jax.diffusion import schedule as schedules

MEAN = np.array([0.6, -0.3, 0.1])
COVARIANCE = np.array([[0.64, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 0.16]])
KEYS = rng.per_example(jax.random.key(5), 256)


def correlated(schedule):
  """The exact denoiser of N(MEAN, COVARIANCE): its Jacobian is not diagonal."""
  values, vectors = (jnp.asarray(a, jnp.float32) for a in np.linalg.eigh(COVARIANCE))
  mean = jnp.asarray(MEAN, jnp.float32)

  def denoise(x, t):
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    z = (x - alpha * mean[None]) @ vectors
    residual = z / (alpha**2 * values[None] + sigma**2)
    x0 = mean[None] + (alpha * values[None] * residual) @ vectors.T
    return param.Prediction(x0, sigma * (residual @ vectors.T))

  return denoise


@functools.cache
def draws() -> np.ndarray:
  generator = np.random.default_rng(0)
  return generator.multivariate_normal(MEAN, COVARIANCE, 256).astype(np.float32)


def density(schedule, divergence, **how) -> np.ndarray:
  def run(x, keys):
    given = (correlated(schedule), schedule, x, keys)
    return likelihood.path(*given, divergence=divergence, **how).integrate()

  return np.asarray(jax.jit(run)(jnp.asarray(draws()), KEYS), np.float64)


def normal_density(signal: float = np.exp(-6.0), schedule=None) -> np.ndarray:
  """What the flow makes of N(0, 1 - signal^2), the noise that samplers start from.

  Each principal axis keeps its z; with no signal left this is the data's own density,
  or that of data as noisy as at the first time that a model of `schedule` knows.
  """
  alpha, sigma = 1.0, 0.0
  if schedule and schedule.t_first:
    at = np.float32(schedule.t_first)
    alpha, sigma = float(schedule.alpha(at)), float(schedule.sigma(at))
  variance, axes = np.linalg.eigh(COVARIANCE)
  variance = variance + (sigma / alpha) ** 2
  z = (draws() - MEAN) @ axes / np.sqrt(variance)
  noise = 1.0 - signal**2
  spread = np.sqrt(signal**2 * variance + noise)
  top = signal * MEAN @ axes + spread * z
  logs = -0.5 * (top**2 / noise + np.log(2.0 * np.pi * noise))
  return (logs + np.log(spread / np.sqrt(variance))).sum(1)


@pytest.mark.parametrize(
  "schedule",
  [
    schedules.Cosine(),
    schedules.RectifiedFlow(),
    schedules.Karras(1000.0),
    schedules.ZeroTerminal(schedules.ScaledLinear()),
  ],
  ids=lambda schedule: type(schedule).__name__,
)
def test_density_of_gaussian_data(schedule):
  """Point by point, on schedules that end at alpha = 0 or explode."""
  got = density(schedule, likelihood.exact)
  np.testing.assert_allclose(got, normal_density(schedule=schedule), atol=3e-4)
  np.testing.assert_allclose(got, normal_density(0.0, schedule), atol=2e-2)


def test_entropy_of_gaussian_data_by_probes():
  """Random signs are right on average: each off by the Jacobian beside its diagonal."""
  got = density(schedules.Cosine(), likelihood.hutchinson)
  off = got - normal_density()
  assert 0.02 < off.std() < 1.0
  assert abs(off.mean()) < 4.0 * off.std() / np.sqrt(len(off))
  entropy = 0.5 * np.linalg.slogdet(2.0 * np.pi * np.e * COVARIANCE)[1]
  assert abs(-got.mean() - entropy) < 4.0 * got.std() / np.sqrt(len(got))


def test_fourth_order():
  """Twice the steps, a sixteenth of the error, until rounding."""
  few, many = (
    np.abs(
      density(schedules.Cosine(), likelihood.exact, num_steps=n) - normal_density()
    )
    for n in (16, 32)
  )
  assert 8.0 < few.max() / many.max() < 40.0


def test_the_network_is_asked_only_for_noise_that_it_knows():
  schedule, lowest = schedules.known(schedules.Cosine(), 0.01), []

  def denoise(x, t):
    jax.debug.callback(lambda t: lowest.append(t.min()), t)
    return correlated(schedule)(x, t)

  given = (denoise, schedule, jnp.asarray(draws()), KEYS)
  got = likelihood.path(*given, divergence=likelihood.exact).integrate()
  jax.effects_barrier()
  assert schedule.t_first <= min(lowest) < schedule.t_first + 1e-4
  np.testing.assert_allclose(got, normal_density(schedule=schedule), atol=3e-4)
