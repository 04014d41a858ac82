"""Inversion: up a sampler's times and down again; and the arc between two noises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import rng
from gen_jax.diffusion import editing, grids, multistep, samplers
from gen_jax.diffusion import parameterisation as param
from gen_jax.diffusion import schedule as schedules

SCHEDULE = schedules.Cosine()
KEYS = rng.per_example(jax.random.key(0), 8)
MEAN, STD = 0.6, 0.3
Z = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)


def gaussian(x, t):
  """The exact denoiser of N(MEAN, STD^2)."""
  alpha, sigma = SCHEDULE.alpha(t)[:, None], SCHEDULE.sigma(t)[:, None]
  residual = (x - alpha * MEAN) / ((alpha * STD) ** 2 + sigma**2)
  return param.Prediction(MEAN + alpha * STD**2 * residual, sigma * residual)


def network(x, t):
  """Some network, no denoiser of anything."""
  w = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4)), jnp.float32)
  return param.solve(param.V(), SCHEDULE, t, x, jnp.tanh(x @ w + 3.0 * t[:, None]))


def there_and_back(denoise, make, num_steps, z):
  """The state at the top, and what comes back down."""
  sampler = make(SCHEDULE)
  times = jnp.asarray(grids.uniform(SCHEDULE, num_steps), z.dtype)

  @jax.jit
  def run(z):
    x, carry = editing.invert(denoise, sampler, times, z, KEYS)
    return x, samplers.integrate(denoise, sampler, times, x, carry, KEYS)[0][0]

  return map(np.asarray, run(jnp.asarray(z)))


def test_belm_comes_back_exactly_on_any_network():
  """To rounding, where DDIM inversion is off by its step."""
  _, exact = there_and_back(network, multistep.belm, 20, Z)
  _, nearly = there_and_back(network, samplers.ddim, 20, Z)
  np.testing.assert_allclose(exact, Z, atol=1e-4)
  assert np.abs(nearly - Z).max() > 1e-2
  with jax.enable_x64(
    True
  ):  # its rounding grows with the steps: it is no more than that
    _, exact = there_and_back(network, multistep.belm, 20, Z.astype(np.float64))
    np.testing.assert_allclose(exact, Z, atol=1e-11)


@pytest.mark.parametrize(
  ("make", "order"), [(samplers.ddim, 1), (samplers.heun, 2), (multistep.belm, 2)]
)
def test_inversion_of_gaussian_data(make, order):
  """An image STD z from the mean is the noise z; samplers lead back from there."""
  gaps = []
  for num_steps in (50, 200):
    top, back = there_and_back(gaussian, make, num_steps, MEAN + STD * Z)
    t = grids.t_max(SCHEDULE)
    spread = np.hypot(SCHEDULE.alpha(t) * STD, SCHEDULE.sigma(t))
    gaps.append(np.abs((top - SCHEDULE.alpha(t) * MEAN) / spread - Z).max())
    assert np.abs(back - (MEAN + STD * Z)).max() < 4.0 / num_steps
  # The ends are singular: a little less than the order.
  assert gaps[1] < gaps[0] / 2.2**order and gaps[1] < 0.1


def test_slerp():
  """Exact at the ends, at equal angles between, and as long as its ends are."""
  first, second = (rng.normal(KEYS[i : i + 4], (3, 5)) for i in (0, 4))
  shares = jnp.array([0.0, 1.0, 0.5, 0.25])
  got = np.asarray(editing.slerp(first, second, shares)).reshape(4, -1)
  a, b = (np.asarray(x, np.float64).reshape(4, -1) for x in (first, second))
  np.testing.assert_array_equal(got[0], a[0].astype(np.float32))
  np.testing.assert_array_equal(got[1], b[1].astype(np.float32))

  def angle(x, y):
    return np.arccos((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))

  unit = np.linalg.norm(a, axis=1, keepdims=True) / np.linalg.norm(b, axis=1)[:, None]
  even = np.asarray(
    editing.slerp(first, jnp.asarray((b * unit).reshape(4, 3, 5), jnp.float32), shares)
  ).reshape(4, -1)
  for i in (2, 3):
    whole = angle(a[i], b[i])
    np.testing.assert_allclose(angle(a[i], even[i]), shares[i] * whole, rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(even[i]), np.linalg.norm(a[i]), rtol=1e-5)
  # Two equal noises: their arc is a point.
  np.testing.assert_allclose(editing.slerp(first, first, shares), first, rtol=1e-5)


@pytest.mark.parametrize("strength", [1.0, 0.6, 0.05, 0.01, 0.002, 0.0005])
@pytest.mark.parametrize("grid", [grids.trailing, grids.karras, grids.linspace])
def test_a_shortened_grid_keeps_to_what_is_known(grid, strength):
  """Of as many steps, from strength times its start; only where that is known too."""
  chain = schedules.ScaledLinear()
  times = grid(chain, 20)
  short = np.asarray(editing.shortened(times, jnp.float32(strength), chain.t_first))
  assert short[0] == pytest.approx(strength * float(times[0]))
  assert short[-1] == 0.0 and np.all(np.diff(short) < 0)
  if strength > 0.001:
    assert np.all(short[:-1] >= chain.t_first - 1e-9)
  if strength == 1.0:
    np.testing.assert_allclose(short, times, atol=1e-7)
  np.testing.assert_allclose(
    editing.shortened(times, jnp.float32(strength), 0.0), strength * times, rtol=1e-5
  )
