"""Schedules: each is its paper's formula, and one clock with its log-SNR."""

import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion import schedule as schedules
from gen_jax.types import InputError
from tests.diffusion import oracle

# The inner times, three of them moved close to the ends.
TIMES = oracle.TIMES.copy()
TIMES[[1, 2, -1]] = 1e-4, 1e-3, 0.999


@pytest.mark.parametrize("case", oracle.CASES)
def test_time_0_is_clean_data(case):
  """alpha(0) = 1 and sigma(0) = 0 exactly, where log-SNR is infinite."""
  schedule = case.schedule
  assert schedule.alpha(jnp.float32(0.0)) == 1.0
  assert schedule.sigma(jnp.float32(0.0)) == 0.0
  assert schedule.logsnr(jnp.float32(0.0)) == np.inf
  assert schedule.t_of(jnp.float32(np.inf)) == 0.0


@pytest.mark.parametrize("case", oracle.CASES)
def test_formula(case):
  """alpha, sigma and log-SNR are the paper's to float32, also close to both ends."""
  times, t = jnp.asarray(TIMES), oracle.wide(TIMES)
  for name in ("alpha", "sigma"):
    got = getattr(case.schedule, name)(times)
    assert got.dtype == jnp.float32
    # One ulp of t near 1 is a relative 6e-5 of alpha where alpha vanishes like 1 - t,
    # and of a step between two nodes of a chain.
    np.testing.assert_allclose(got, getattr(case, name)(t), rtol=7e-5)
  np.testing.assert_allclose(case.schedule.logsnr(times), case.logsnr(t), atol=2e-4)


@pytest.mark.parametrize("case", oracle.CASES)
def test_logsnr_strictly_falls(case):
  """More time is more noise: log-SNR falls, sigma rises, alpha never rises."""
  times = jnp.linspace(1e-3, 1.0, 1000)
  assert np.all(np.diff(case.schedule.logsnr(times)) < 0.0)
  assert np.all(np.diff(case.schedule.sigma(times)) >= 0.0)
  assert np.all(np.diff(case.schedule.sigma(times))[:500] > 0.0)
  assert np.all(np.diff(case.schedule.alpha(times)) <= 0.0)


@pytest.mark.parametrize("case", oracle.CASES)
def test_t_of_inverts_logsnr(case):
  """Both ways round, small times to relative precision."""
  times = jnp.asarray(TIMES)
  back = case.schedule.t_of(case.schedule.logsnr(times))

  np.testing.assert_allclose(back, times, rtol=2e-6)
  levels = jnp.linspace(-5.0, 14.0, len(TIMES))
  again = case.schedule.logsnr(case.schedule.t_of(levels))
  np.testing.assert_allclose(again, levels, atol=2e-4)


@pytest.mark.parametrize("case", oracle.VP_CASES)
def test_variance_is_preserved(case):
  """alpha^2 + sigma^2 = 1, from the values as computed."""
  times = jnp.linspace(0.0, 1.0, 1000)
  alpha, sigma = (
    np.asarray(f(times), np.float64) for f in (case.schedule.alpha, case.schedule.sigma)
  )
  np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, atol=3e-7)


@pytest.mark.parametrize("case", oracle.CASES)
def test_derivatives(case):
  """(alpha', sigma') are the central differences of the paper's formulas."""
  times = jnp.asarray(oracle.TIMES)
  got = schedules.derivatives(case.schedule, times)
  expected = case.slopes(oracle.wide(oracle.TIMES))
  for one, other in zip(got, expected, strict=True):
    # A chain's slope is a difference of two float32 nodes.
    np.testing.assert_allclose(one, other, rtol=3e-4, atol=1e-6)


@pytest.mark.parametrize(
  ("schedule", "betas"),
  [
    (schedules.Linear(), np.linspace(1e-4, 0.02, 1000)),
    (schedules.ScaledLinear(), np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
    (schedules.Linear(50, 0.01, 0.3), np.linspace(0.01, 0.3, 50)),
  ],
  ids=["ddpm", "stable_diffusion", "short"],
)
def test_chain_at_its_nodes(schedule, betas):
  """alpha^2(i / T) is the product of the first i factors 1 - beta, none left out."""
  bar = np.cumprod(1.0 - betas)
  bar = np.resize(bar, 1000)  # the short chain over and over
  nodes = np.resize(np.arange(1, len(betas) + 1) / len(betas), 1000)
  times = jnp.asarray(nodes, jnp.float32)
  # i / T in float32 lies up to 3e-5 of a step beside the node.
  np.testing.assert_allclose(schedule.alpha(times) ** 2, bar, rtol=1e-5)
  np.testing.assert_allclose(schedule.sigma(times) ** 2, 1.0 - bar, rtol=5e-5)


def test_stable_diffusion_sigmas():
  """k-diffusion's well-known range of sigma / alpha of SD 1: 0.0292 to 14.6146."""
  schedule, times = schedules.ScaledLinear(), jnp.linspace(0.001, 1.0, 1000)
  sigmas = schedule.sigma(times) / schedule.alpha(times)
  np.testing.assert_allclose(sigmas[np.array([0, -1])], [0.0292, 14.6146], atol=5e-5)


def test_linear_tends_to_vp_linear():
  """T steps of beta / T are Song et al.'s beta(t), with an error of first order."""
  times = jnp.asarray(oracle.TIMES)
  limit = schedules.VPLinear().logsnr(times)
  gaps = [
    np.max(np.abs(schedules.Linear(n, 0.1 / n, 20.0 / n).logsnr(times) - limit))
    for n in (500, 5_000, 50_000)
  ]
  np.testing.assert_allclose(gaps[0] / gaps[1], 10.0, rtol=0.1)
  assert gaps[2] < 2e-3


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_shift_of_rectified_flow(factor):
  """Esser et al. 2024 eq. 23: f t / (1 + (f - 1) t)."""
  schedule = schedules.Shift(schedules.RectifiedFlow(), factor)
  t = np.linspace(0.0, 1.0, 9)
  expected = factor * t / (1.0 + (factor - 1.0) * t)
  times = jnp.asarray(t, jnp.float32)
  np.testing.assert_allclose(schedule.sigma(times), expected, rtol=2e-6)
  np.testing.assert_allclose(
    schedule.alpha(times), 1.0 - expected, rtol=2e-6, atol=1e-6
  )


@pytest.mark.parametrize("case", oracle.CASES)
def test_shifts_add_up(case):
  """`factor` is 2 log(factor) of log-SNR, and shifts compose like their factors."""
  times = jnp.asarray(oracle.TIMES)
  twice = schedules.Shift(schedules.Shift(case.schedule, 1.5), 2.0)
  expected = case.logsnr(oracle.wide(oracle.TIMES)) - 2.0 * np.log(3.0)
  from_values = 2.0 * (jnp.log(twice.alpha(times)) - jnp.log(twice.sigma(times)))
  np.testing.assert_allclose(twice.logsnr(times), expected, atol=2e-4)
  np.testing.assert_allclose(from_values, expected, atol=5e-4)


@pytest.mark.parametrize(
  "make",
  [
    lambda: schedules.VPLinear(20.0, 0.1),
    lambda: schedules.VPLinear(0.0, 1.0),
    lambda: schedules.Linear(1000, 0.02, 1e-4),
    lambda: schedules.ScaledLinear(1000, 0.0, 0.01),
    lambda: schedules.Linear(1000, 1e-4, 1.0),
    lambda: schedules.Linear(1),
    lambda: schedules.Cosine(-1.0),
    lambda: schedules.Cosine(float("nan")),
    lambda: schedules.Karras(rho=0.0),
    lambda: schedules.Karras(sigma_max=-1.0),
    lambda: schedules.Shift(schedules.VPLinear(), 0.0),
  ],
)
def test_parameters_that_give_no_schedule_are_refused(make):
  with pytest.raises(InputError, match=r"=(-?[0-9.e-]+|nan) "):
    make()
