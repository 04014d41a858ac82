"""Time grids: strictly falling to exactly 0, and even in the clock they claim."""

import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion import grids
from gen_jax.diffusion import schedule as schedules
from tests.diffusion import oracle

GRIDS = [
  pytest.param(grid, id=grid.__name__)
  for grid in (
    grids.uniform,
    grids.trailing,
    grids.leading,
    grids.karras,
    grids.uniform_logsnr,
  )
]
NUM_STEPS = 64


def ratio(case: oracle.Case, times) -> np.ndarray:
  """sigma / alpha at the inner times, in float64."""
  t = oracle.wide(times)
  return case.sigma(t) / case.alpha(t)


def noisiest(case: oracle.Case) -> float:
  """sigma / alpha at the start of a grid: the schedule's own, or log-SNR -12."""
  alpha, sigma = case.alpha(np.float64(1.0)), case.sigma(np.float64(1.0))
  floor = np.exp(6.0)
  return float(min(sigma / max(alpha, 1e-12), floor))


@pytest.mark.parametrize("case", oracle.CASES)
@pytest.mark.parametrize("grid", GRIDS)
def test_falls_strictly_from_noise_to_0(case, grid):
  """num_steps + 1 float32 times in [0, 1], the last one 0, no two alike."""
  times = grid(case.schedule, NUM_STEPS)
  assert times.shape == (NUM_STEPS + 1,)
  assert times.dtype == jnp.float32
  assert float(times[-1]) == 0.0
  assert float(times[0]) <= 1.0
  assert np.all(np.diff(times) < 0.0)


@pytest.mark.parametrize("case", oracle.CASES)
def test_starts_at_the_noisiest_useful_time(case):
  """t = 1, or where log-SNR is -12 if that comes first."""
  start = grids.t_max(case.schedule)
  assert start.shape == ()
  np.testing.assert_allclose(ratio(case, start), noisiest(case), rtol=1e-3)
  assert 0.98 < float(start) <= 1.0
  for grid in (grids.uniform, grids.uniform_logsnr):
    first = grid(case.schedule, NUM_STEPS)[0]
    np.testing.assert_allclose(first, start, rtol=3e-7)


@pytest.mark.parametrize("case", oracle.CASES)
def test_uniform_has_equal_steps(case):
  """num_steps equal differences of t."""
  times = oracle.wide(grids.uniform(case.schedule, NUM_STEPS))
  np.testing.assert_allclose(-np.diff(times), times[0] / NUM_STEPS, rtol=1e-5)


@pytest.mark.parametrize("case", oracle.CASES)
@pytest.mark.parametrize(
  ("low", "high", "rho"), [(0.002, 80.0, 7.0), (0.02, 5.0, 3.0), (0.01, 1e4, 7.0)]
)
def test_karras_sigmas(case, low, high, rho):
  """Karras et al. 2022 eq. 5 for sigma / alpha, capped by what the schedule has."""
  times = grids.karras(case.schedule, NUM_STEPS, low, high, rho)
  high = min(high, noisiest(case))
  i = np.arange(NUM_STEPS)
  expected = (
    high ** (1 / rho) + i / (NUM_STEPS - 1) * (low ** (1 / rho) - high ** (1 / rho))
  ) ** rho
  # 1e-3: where alpha vanishes like 1 - t, an ulp of t is 2e-5 of it, and of a chain's
  # first node.
  np.testing.assert_allclose(ratio(case, times[:-1]), expected, rtol=1e-3)


def test_karras_defaults():
  """The paper's own 0.002, 80 and 7."""
  sigmas = 80.0 * oracle.wide(grids.karras(schedules.Karras(), 64)) ** 7
  np.testing.assert_allclose(sigmas[[0, 63]], [80.0, 0.002], rtol=1e-5)
  root = sigmas[:-1] ** (1 / 7)
  np.testing.assert_allclose(np.diff(root), np.diff(root)[0], rtol=1e-4)


@pytest.mark.parametrize("case", oracle.CASES)
@pytest.mark.parametrize("logsnr_max", [12.0, 8.0])
def test_uniform_logsnr_has_equal_steps_of_logsnr(case, logsnr_max):
  """From the noisiest level to logsnr_max in num_steps levels."""
  times = grids.uniform_logsnr(case.schedule, NUM_STEPS, logsnr_max)
  got = -2.0 * np.log(ratio(case, times[:-1]))
  low = -2.0 * np.log(noisiest(case))
  np.testing.assert_allclose(got, np.linspace(low, logsnr_max, NUM_STEPS), atol=1e-3)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("num_steps", [1, 1000])
def test_any_number_of_steps(grid, num_steps):
  """One step goes from noise to data at once; a thousand are still all different."""
  times = grid(schedules.VPLinear(), num_steps)
  assert times.shape == (num_steps + 1,)
  assert float(times[0]) > 0.9 or (grid, num_steps) == (grids.leading, 1)
  assert np.all(np.diff(times) < 0.0)
  assert float(times[-1]) == 0.0
