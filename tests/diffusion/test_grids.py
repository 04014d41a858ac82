"""Time grids: strictly falling to exactly 0, and even in the clock they claim.

Between the two a model knows what it is asked: nothing below the first node of a chain,
or below the times that training has shown.
"""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion import grids
from gen_jax.diffusion import schedule as schedules
from gen_jax.types import InputError
from tests.diffusion import oracle

GRIDS = [
  pytest.param(grid, id=grid.__name__)
  for grid in (
    grids.uniform,
    grids.trailing,
    grids.leading,
    grids.linspace,
    grids.karras,
    grids.uniform_logsnr,
    grids.align_your_steps,
  )
]
SHORT = schedules.Linear(10, 1e-3, 0.5)
NUM_STEPS = 64


def quietest(case: oracle.Case) -> float:
  """sigma / alpha of a chain's first node; 0 for what is no chain."""
  first = case.schedule.t_first
  return float(case.sigma(np.float64(first)) / case.alpha(np.float64(first)))


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
def test_t_first_is_the_first_node_of_the_chain_within(case):
  """On the clock of training and, where it is shifted, on the chain's own."""
  schedule = case.schedule
  inner = getattr(schedule, "schedule", schedule)
  num = getattr(inner, "num_timesteps", None)
  assert schedule.t_first == pytest.approx(1 / num if num else 0.0, rel=1e-3)
  for slower in (0.5, 2.0) if num else ():
    first = schedules.Shift(inner, slower).t_first
    clock = inner.t_of(inner.logsnr(jnp.float32(first)) - 2 * jnp.log(slower))
    assert min(first, clock) == pytest.approx(1 / num, rel=1e-3)
    assert max(first, clock) > 1.1 / num


@pytest.mark.parametrize("num_steps", [1, 2, 9, 64, 300])
@pytest.mark.parametrize(
  "schedule",
  [
    schedules.known(schedules.VPLinear(), 0.01),
    schedules.known(schedules.ScaledLinear(), 0.01),
    schedules.Shift(schedules.ScaledLinear(), 0.25),
    schedules.ScaledLinear(),
    SHORT,
    schedules.ZeroTerminal(SHORT),
  ],
  ids=["known", "known chain", "shift", "chain", "short chain", "short zero terminal"],
)
@pytest.mark.parametrize("grid", GRIDS)
def test_no_time_is_quieter_than_what_is_known(grid, schedule, num_steps):
  """Also of more steps than a chain has nodes, and of levels that it does not reach."""
  times = np.asarray(grid(schedule, num_steps))
  assert times.shape == (num_steps + 1,)
  assert np.all(times[:-1] >= np.float32(schedule.t_first))
  assert times[0] <= 1.0 and times[-1] == 0.0
  assert np.all(np.diff(times) < 0.0)


@pytest.mark.parametrize("num_steps", [1, 3, 7, 10])
def test_steps_of_a_chain_are_nodes(num_steps):
  """Not every third of ten: whole numbers of them."""
  for make in (
    grids.trailing,
    functools.partial(grids.leading, first=0.1),
    functools.partial(grids.linspace, rounded=True),
  ):
    nodes = 10 * np.asarray(make(SHORT, num_steps))
    np.testing.assert_allclose(nodes, np.round(nodes), atol=1e-5)
  leading = 10 * np.asarray(grids.leading(SHORT, 3, 0.2))
  np.testing.assert_allclose(leading, [8, 5, 2, 0], atol=1e-5)
  spare = 10 * np.asarray(grids.leading(SHORT, 3, 0.2, spare=1))
  np.testing.assert_allclose(spare, [8, 6, 4, 0], atol=1e-5)
  spare = 10 * np.asarray(grids.linspace(SHORT, 3, spare=1))
  np.testing.assert_allclose(spare, [10, 7, 4, 0], atol=1e-5)


def test_to_first_node_ends_where_the_chain_does():
  times = grids.to_first_node(SHORT, 5, grids.trailing)
  np.testing.assert_allclose(10 * times, [10, 8, 6, 4, 2, 1], rtol=1e-6)


@pytest.mark.parametrize(
  "levels", [dict(sigma_min=80.0), dict(sigma_min=0.0), dict(rho=0.0), dict(rho=-7.0)]
)
def test_karras_levels_that_do_not_fall_are_refused(levels):
  with pytest.raises(InputError, match=r"karras.*sigma_m|karras.rho"):
    grids.karras(schedules.VPLinear(), 8, **levels)


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
  """Karras et al. 2022 eq. 5 for sigma / alpha, held within what the schedule has."""
  times = grids.karras(case.schedule, NUM_STEPS, low, high, rho)
  high, low = min(high, noisiest(case)), max(low, quietest(case))
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
  if first := quietest(case):  # a chain has nothing quieter
    logsnr_max = min(logsnr_max, -2.0 * np.log(first))
  np.testing.assert_allclose(got, np.linspace(low, logsnr_max, NUM_STEPS), atol=1e-3)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("num_steps", [1, 1000])
def test_any_number_of_steps(grid, num_steps):
  """One step goes from noise to data at once; a thousand are still all different."""
  times = grid(schedules.VPLinear(), num_steps)
  assert times.shape == (num_steps + 1,)
  if grid is not grids.align_your_steps:  # levels of its own
    assert float(times[0]) > 0.9 or (grid, num_steps) == (grids.leading, 1)
  assert np.all(np.diff(times) < 0.0)
  assert float(times[-1]) == 0.0
