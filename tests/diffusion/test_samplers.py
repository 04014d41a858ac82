"""Samplers: exact on Gaussian data, of the order they claim, and pure in their keys.

Data x0 ~ N(MEAN, STD^2) has the denoiser

    E[x0 | x_t] = MEAN + alpha STD^2 / v * (x_t - alpha MEAN)
    v = (alpha STD)^2 + sigma^2

and its probability-flow ODE keeps z = (x_t - alpha MEAN) / sqrt(v), so that the state
of one z at any time belongs to the data MEAN + STD z.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import rng
from gen_jax.diffusion import grids, guidance, multistep, samplers
from gen_jax.diffusion import parameterisation as param
from gen_jax.diffusion import schedule as schedules
from tests.diffusion import oracle

MEAN, STD = 0.6, 0.8
FLOW = schedules.RectifiedFlow()
CASE = {row.id: row.values[0] for row in oracle.CASES}


class Row(NamedTuple):
  """A deterministic sampler, its order, and its error after 64 steps from noise."""

  make: Callable[[schedules.Schedule], samplers.Sampler]
  order: int
  tolerance: float


def to_logsnr_12(schedule, num_steps):
  """`uniform_logsnr` below a chain's first node too: this denoiser knows all levels."""
  low = schedule.logsnr(grids.t_max(schedule))
  return jnp.append(schedule.t_of(jnp.linspace(low, 12.0, num_steps)), 0.0)


def _heun_by_norm(schedule):
  return samplers.heun(schedule, lambda alpha, sigma: jnp.sqrt(alpha**2 + sigma**2))


def _heun_by_sum(schedule):
  return samplers.heun(schedule, samplers.by_sum)


ODE = {
  "ddim": Row(samplers.ddim, 1, 0.06),
  "euler": Row(samplers.euler, 1, 0.06),
  "heun": Row(samplers.heun, 2, 0.006),
  "heun_by_sum": Row(_heun_by_sum, 2, 0.006),
  "plms": Row(multistep.plms, 2, 0.02),
  "dpmpp_2m": Row(multistep.dpmpp_2m, 2, 0.006),
  "dpmpp_3m": Row(multistep.dpmpp_3m, 3, 0.006),
  "unipc": Row(multistep.unipc, 3, 0.006),
  "belm": Row(multistep.belm, 2, 0.02),
}
# It asks for times between those of the grid.
ORDERS = {**ODE, "dpmpp_2s": Row(multistep.dpmpp_2s, 2, 0.006)}
SDE = {"ddpm": samplers.ddpm, "ddim_1": lambda schedule: samplers.ddim(schedule, 1.0)}
MAKERS = {**{name: row.make for name, row in ODE.items()}, **SDE}
ODE_NAMES, SDE_NAMES, NAMES = list(ODE), list(SDE), list(MAKERS)
TARGET_NAMES = list(oracle.TARGETS)


class Each(param.Target):
  """Row i of a batch has the i-th target: one compiled step serves all of them."""

  def coefficients(self, schedule, t):
    rows = jnp.arange(len(oracle.TARGETS))
    pairs = [target.coefficients(schedule, t) for target in oracle.TARGETS.values()]
    a, b = (jnp.stack(column)[rows, rows] for column in zip(*pairs, strict=True))
    return a, b


def gaussian(schedule, target: param.Target | None = None) -> guidance.Denoise:
  """The exact denoiser, through the output of a network trained on `target`."""

  def denoise(x, t):
    alpha = schedules.expand(schedule.alpha(t), x)
    sigma = schedules.expand(schedule.sigma(t), x)
    residual = (x - alpha * MEAN) / ((alpha * STD) ** 2 + sigma**2)
    x0, eps = MEAN + alpha * STD**2 * residual, sigma * residual
    if target is None:
      return param.Prediction(x0, eps)
    out = param.combine(target, schedule, t, x0, eps)
    return param.solve(target, schedule, t, x, out)

  return denoise


def state_of(case: oracle.Case, t, z) -> np.ndarray:
  """The state at time t (float32) of the ODE path that is z standard deviations out."""
  t = oracle.wide(t)
  alpha, sigma = case.alpha(t), case.sigma(t)
  return alpha * MEAN + np.sqrt((alpha * STD) ** 2 + sigma**2) * np.asarray(z)


def relative_error(x, z) -> float:
  """The largest distance from the data MEAN + STD z, by the size of z."""
  return float(np.max(np.abs(x - (MEAN + STD * z)) / (1.0 + np.abs(z))))


def assert_normal(x, mean: float, std: float) -> None:
  """Four standard errors of a mean and of a standard deviation."""
  assert abs(float(x.mean()) - mean) < 4.0 * std / np.sqrt(x.size)
  assert abs(float(x.std()) / std - 1.0) < 4.0 / np.sqrt(2.0 * x.size)


def keys_for(batch_size: int, offset: int = 0):
  return rng.per_example(jax.random.key(3), batch_size, offset)


@functools.cache
def draws(name: str) -> np.ndarray:
  """z [targets, many], standard normal; a law takes more of them than a path."""
  shape = (len(oracle.TARGETS), 64 if name in ODE else 2048)
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def stepper(sampler, denoise):
  """One step as `sample` takes it, jitted: (i, t, s, x, carry, keys) -> (x, carry)."""

  def step(i, t, s, x, carry, keys):
    return sampler.step(denoise, x, carry, t, s, rng.fold_in(keys, i))

  return jax.jit(step)


def loop(step, sampler, times, x, keys):
  """All states of the sampler, one Python iteration a step."""
  times, carry, states = np.asarray(times), sampler.init(x), []
  for i in range(len(times) - 1):
    x, carry = step(i, times[i], times[i + 1], x, carry, keys)
    states.append(x)
  return states


@jax.custom_jvp
def _read(t, times, values, slopes):
  """values at the place where times is t; NaN where t is not among them."""
  del slopes
  found = times[:, None] == t.reshape(1, -1)  # [grid, B]
  read = jnp.where(jnp.any(found, 0), values[jnp.argmax(found, 0)], jnp.nan)
  return read.reshape(t.shape)


@_read.defjvp
def _read_jvp(primals, tangents):
  t, times, _, slopes = primals
  return _read(*primals), _read(t, times, slopes, slopes) * tangents[0]


@functools.partial(jax.jit, static_argnums=0)
def tabulate(schedule, times) -> dict[str, jax.Array]:
  """What `Tabulated` reads."""
  dalpha, dsigma = schedules.derivatives(schedule, times)
  return {
    "times": times,
    "alpha": schedule.alpha(times),
    "sigma": schedule.sigma(times),
    "logsnr": schedule.logsnr(times),
    "dalpha": dalpha,
    "dsigma": dsigma,
  }


class Tabulated(schedules.Schedule):
  """A schedule as read off at the times of a grid, so that all share one compilation.

  The numbers are the schedule's own; a sampler that asks for any other time gets NaN.
  """

  def __init__(self, table: dict[str, jax.Array]):
    self._table = table

  def _at(self, t, name, slope="times"):
    return _read(t, self._table["times"], self._table[name], self._table[slope])

  def alpha(self, t):
    return self._at(t, "alpha", "dalpha")

  def sigma(self, t):
    return self._at(t, "sigma", "dsigma")

  def logsnr(self, t):
    return self._at(t, "logsnr")

  def t_of(self, logsnr):
    raise NotImplementedError


@functools.cache
def _table_step(name: str):
  """One step of the named sampler on every target, jitted, the schedule an argument."""

  def step(table, *args):
    schedule = Tabulated(table)
    return stepper(MAKERS[name](schedule), gaussian(schedule, Each()))(*args)

  return jax.jit(step)


@functools.cache
def _grid(case: oracle.Case, grid) -> tuple[np.ndarray, dict[str, jax.Array]]:
  """64 steps, and the schedule at their ends."""
  times = grid(case.schedule, 64)
  return np.asarray(times), tabulate(case.schedule, times)


@functools.cache
def _end(case: oracle.Case, name: str, grid, stride: int) -> tuple[np.ndarray, ...]:
  """The times, and the data [targets, draws] reached in 64 / stride steps."""
  times, table = _grid(case, grid)
  times = times[::stride]
  step = functools.partial(_table_step(name), table)
  x = jnp.asarray(state_of(case, times[0], draws(name)), jnp.float32)
  keys = keys_for(len(oracle.TARGETS))
  states = loop(step, MAKERS[name](case.schedule), times, x, keys)
  return times, np.asarray(states[-1], np.float64)


@pytest.mark.parametrize("target", TARGET_NAMES)
@pytest.mark.parametrize("case", oracle.CASES)
@pytest.mark.parametrize("name", ODE_NAMES)
def test_ode_reaches_the_data_pointwise(case, name, target):
  """Every path ends at MEAN + STD z, the nearer the more steps it takes."""
  row, i = ODE[name], TARGET_NAMES.index(target)
  z = draws(name)[i]
  few, many = (
    relative_error(_end(case, name, to_logsnr_12, stride)[1][i], z) for stride in (4, 1)
  )
  assert many < row.tolerance
  # Four times the steps: 4^order but for the ends, where the ODE is singular.
  assert many < few / 2.5**row.order


def ancestral_law(case: oracle.Case, times) -> tuple[float, float]:
  """Mean and std of what the posteriors of Ho et al. 2020 eq. 7 make of the start."""
  t = oracle.wide(times)
  alphas, sigmas = case.alpha(t), case.sigma(t)
  mean = alphas[0] * MEAN
  variance = (alphas[0] * STD) ** 2 + sigmas[0] ** 2
  for i in range(len(t) - 1):
    (alpha, alpha_s), (sigma, sigma_s) = alphas[i : i + 2], sigmas[i : i + 2]
    gain = alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2)  # of x0 on x_t
    step = alpha / alpha_s
    fresh = sigma**2 - step**2 * sigma_s**2  # beta_t of the step
    from_x0, from_x = alpha_s * fresh / sigma**2, step * sigma_s**2 / sigma**2
    slope = from_x0 * gain + from_x
    mean = slope * mean + from_x0 * (1.0 - gain * alpha) * MEAN
    variance = slope**2 * variance + fresh * sigma_s**2 / sigma**2
  return float(mean), float(np.sqrt(variance))


@pytest.mark.parametrize("target", TARGET_NAMES)
@pytest.mark.parametrize("case", oracle.CASES)
@pytest.mark.parametrize("name", SDE_NAMES)
def test_sde_reaches_the_law_of_the_data(case, name, target):
  """Samples follow the exact law of the chain, which nears N(MEAN, STD^2)."""
  gaps = []
  for stride in (8, 2):
    times, x = _end(case, name, to_logsnr_12, stride)
    x = x[TARGET_NAMES.index(target)]
    assert_normal(x, *ancestral_law(case, times))
    gaps.append(abs(x.mean() - MEAN) + abs(x.std() - STD))
  assert gaps[1] < 0.2
  assert gaps[1] < 0.6 * gaps[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
  "grid", [grids.uniform, grids.karras, grids.uniform_logsnr], ids=lambda g: g.__name__
)
def test_every_grid_serves_every_sampler(name, grid):
  """The grid changes the error, not the answer."""
  case = CASE["vp_linear"]
  times, x = _end(case, name, grid, 1)
  if name in ODE:
    assert relative_error(x, draws(name)) < 0.06
  else:
    assert_normal(x, *ancestral_law(case, times))
    assert abs(x.std() - STD) < 0.15


@pytest.mark.parametrize("schedule", ["vp_linear", "rectified_flow"])
@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(schedule, name):
  """Halving the step between two inner times divides the error by 2^order.

  Multistep methods of order 3 begin with lower orders, so their first steps are short.
  """
  case, row, z = CASE[schedule], ORDERS[name], np.array([-1.3, 0.4, 2.0])
  start, end = 0.75, 0.1
  with jax.enable_x64(True):
    # The state belongs to the schedule's own alpha and sigma: here only the step errs.
    alpha, sigma = (
      np.asarray([f(jnp.float64(t)) for t in (start, end)])
      for f in (case.schedule.alpha, case.schedule.sigma)
    )
    exact = alpha[:, None] * MEAN + np.hypot(alpha * STD, sigma)[:, None] * z
    sampler = row.make(case.schedule)
    step = stepper(sampler, gaussian(case.schedule))
    errors = []
    for num_steps in (64, 128):
      times = np.linspace(start, end, num_steps + 1)
      if row.order == 3:
        short = (times[0] - times[1]) ** 2
        times = np.concatenate(
          [times[:1], times[0] - short * np.arange(1, 3), times[1:]]
        )
      times = jnp.asarray(times)
      x = loop(step, sampler, times, jnp.asarray(exact[:1]), keys_for(1))[-1]
      assert x.dtype == jnp.float64
      errors.append(np.max(np.abs(np.asarray(x[0]) - exact[1])))
  measured = np.log2(errors[0] / errors[1])
  # Terms of third and fourth order are of one size here: it may look better than 3.
  assert row.order - 0.25 < measured < row.order + (0.25 if row.order < 3 else 1.0)


PAIRS = [(0.95, 0.9), (0.7, 0.3), (0.31, 0.3), (0.2, 0.0)]


def _one_step(sampler, case, t, s):
  """From states twice as far out as typical ones."""
  x = jnp.asarray(state_of(case, t, 2.0 * draws("ddim")[:2, :48]), jnp.float32)
  t, s = jnp.float32(t), jnp.float32(s)
  return sampler.step(gaussian(case.schedule), x, sampler.init(x), t, s, keys_for(2))[0]


@pytest.mark.parametrize("case", oracle.CASES)
def test_ddim_0_is_euler(case):
  """Step for step: Euler's method in (x / alpha, sigma / alpha), written out."""
  schedule = case.schedule
  for t, s in PAIRS:

    def by_hand(denoise, x, carry, t, s, keys):
      alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(s)
      change = schedule.sigma(s) / alpha_s - schedule.sigma(t) / alpha_t
      slope = samplers.call(denoise, x, t).eps
      return alpha_s * (x / alpha_t + change * slope), carry

    ddim = _one_step(samplers.euler(schedule), case, t, s)
    euler = _one_step(samplers.Sampler(samplers.no_carry, by_hand), case, t, s)
    np.testing.assert_allclose(ddim, euler, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("case", oracle.CASES)
def test_ddim_1_is_ddpm(case):
  """Step for step, with the same keys."""
  for t, s in PAIRS:
    ddim = _one_step(samplers.ddim(case.schedule, 1.0), case, t, s)
    ddpm = _one_step(samplers.ddpm(case.schedule), case, t, s)
    # sigma_t^2 - (alpha_ts sigma_s)^2 cancels where s is close to t.
    np.testing.assert_allclose(ddim, ddpm, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", oracle.CASES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_keeps_the_marginal(case, eta):
  """Given (x0, eps) of unit spread, x_s has variance sigma_s^2 about alpha_s x0."""
  t, s = np.float32(0.6), np.float32(0.4)
  x = rng.normal(keys_for(1, 9), (20_000,))  # eps itself, so that x0 = 0 is known

  def denoise(x, t):
    del t
    return param.Prediction(jnp.full_like(x, 3.0), x)

  sampler = samplers.ddim(case.schedule, eta)
  x, _ = sampler.step(denoise, x, (), jnp.float32(t), jnp.float32(s), keys_for(1))
  assert_normal(x, 3.0 * case.alpha(oracle.wide(s)), case.sigma(oracle.wide(s)))


def test_ddpm_is_the_posterior_of_the_chain():
  """Ho et al. 2020 eq. 6-7 in float64, between neighbouring nodes."""
  beta = np.linspace(1e-4, 0.02, 1000)
  bar = np.cumprod(1.0 - beta)
  x0, x, keys = np.array([[0.3, -1.2]]), np.array([[1.1, 0.4]]), keys_for(1)
  n = np.asarray(rng.normal(keys, (2,)), np.float64)
  sampler = samplers.ddpm(schedules.Linear())

  def denoise(x, t):
    del t
    return param.Prediction(jnp.asarray(x0, jnp.float32), jnp.full_like(x, jnp.nan))

  for i in (2, 10, 100, 500, 1000):  # Ho's t, counted from 1
    now, before, b = bar[i - 1], bar[i - 2], beta[i - 1]
    mean = (
      np.sqrt(before) * b / (1.0 - now) * x0
      + np.sqrt(1.0 - b) * (1.0 - before) / (1.0 - now) * x
    )
    std = np.sqrt((1.0 - before) / (1.0 - now) * b)
    t, s = jnp.float32(i / 1000), jnp.float32((i - 1) / 1000)
    got, _ = sampler.step(denoise, jnp.asarray(x, jnp.float32), (), t, s, keys)
    np.testing.assert_allclose(got, mean + std * n, rtol=5e-4, atol=1e-5)


@pytest.mark.parametrize("case", oracle.CASES)
@pytest.mark.parametrize("name", NAMES)
def test_last_step_lands_on_x0(case, name):
  """At s = 0 the state is E[x0 | x_t]: no noise, and nothing infinite."""
  times, table = _grid(case, grids.uniform_logsnr)
  t = times[20]
  alpha, sigma = case.alpha(oracle.wide(t)), case.sigma(oracle.wide(t))
  x = state_of(case, t, draws(name))
  gain = alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2)
  expected = MEAN + gain * (x - alpha * MEAN)
  x = jnp.asarray(x, jnp.float32)
  carry, keys = MAKERS[name](case.schedule).init(x), keys_for(len(x))
  x, _ = _table_step(name)(table, 0, t, np.float32(0.0), x, carry, keys)
  np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_starts_where_no_data_is_left(name):
  """From alpha = 0 exactly, where the coordinates x / alpha are undefined."""
  case, times = CASE["rectified_flow"], np.linspace(1.0, 0.0, 65, dtype=np.float32)
  step = functools.partial(_table_step(name), tabulate(FLOW, jnp.asarray(times)))
  z, keys = draws(name), keys_for(len(oracle.TARGETS))
  x = jnp.asarray(state_of(case, times[0], z), jnp.float32)
  end = loop(step, MAKERS[name](FLOW), times, x, keys)[-1]
  for target in ("x0", "v", "velocity", "edm"):  # eps and score say nothing of x0 there
    x, i = end[TARGET_NAMES.index(target)], TARGET_NAMES.index(target)
    if name in ODE:
      assert relative_error(x, z[i]) < ODE[name].tolerance
    else:
      assert_normal(x, *ancestral_law(case, times))


def test_heun_of_any_scale_is_the_ode_of_ddim():
  """All follow one path: their distance to ddim falls like its error, 1 / steps."""
  makers = [samplers.ddim, samplers.heun, _heun_by_sum, _heun_by_norm]
  pairs = [(make(FLOW), stepper(make(FLOW), gaussian(FLOW))) for make in makers]
  gaps = []
  for num_steps in (25, 100):
    times = np.linspace(0.9, 0.1, num_steps + 1, dtype=np.float32)
    x = state_of(CASE["rectified_flow"], times[0], [[-1.0, 0.5, 2.0]])
    x = jnp.asarray(x, jnp.float32)
    ddim, *heuns = (
      np.asarray(loop(step, sampler, times, x, keys_for(1))[-1])
      for sampler, step in pairs
    )
    gaps.append([np.max(np.abs(heun - ddim)) for heun in heuns])
  few, many = np.array(gaps)
  assert np.all((few / many > 3.0) & (few / many < 5.5))
  assert np.all(many < 0.02)


def _scan(name: str, start: int):
  """Images start, ..., 4 by `sample`: (their noise, the end, what was kept)."""
  x = jnp.asarray(draws("ddim")[start:5, :48])
  times, keys = INNER, keys_for(5 - start, start)
  denoise = gaussian(FLOW, param.Velocity())
  sampler = MAKERS[name](FLOW)
  return x, *samplers.sample(denoise, sampler, times, x, keys, trace=lambda x: 2.0 * x)


_scanned = functools.cache(_scan)  # compiled
INNER = np.linspace(0.8, 0.0, 6, dtype=np.float32)  # 1 / alpha amplifies no rounding
# One without a carry, one with lax.cond, one with a carry, one that draws noise.
SCANNED = ["euler", "heun", "dpmpp_2m", "ddpm"]


@pytest.mark.parametrize("name", SCANNED)
def test_scan_is_the_loop(name):
  """`sample` is a loop of steps with keys fold_in(keys, i); trace keeps every state."""
  x, end, kept = _scanned(name, 3)
  times, keys = INNER, keys_for(2, 3)
  sampler, denoise = MAKERS[name](FLOW), gaussian(FLOW, param.Velocity())
  carry, states = sampler.init(x), []
  for i in range(5):
    t, s, step_keys = times[i], times[i + 1], rng.fold_in(keys, i)
    x, carry = sampler.step(denoise, x, carry, t, s, step_keys)
    states.append(x)
  np.testing.assert_allclose(end, states[-1], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(kept, 2.0 * jnp.stack(states), rtol=1e-5, atol=1e-5)


def test_without_trace_nothing_is_kept():
  """The trajectory costs no memory unless it is asked for."""
  times, keys = grids.uniform(FLOW, 5), keys_for(2)
  sampler, denoise = samplers.ddim(FLOW), gaussian(FLOW)
  run = functools.partial(samplers.sample, denoise, sampler)
  end, kept = jax.eval_shape(run, times, jnp.zeros((2, 3)), keys)
  assert end.shape == (2, 3)
  assert kept is None


@pytest.mark.parametrize("name", [*SCANNED, "ddim_1"])
def test_an_image_does_not_know_its_batch(name):
  """Image i of five is bitwise that of a batch of two: no operation mixes images.

  Operation by operation, for that is what this code decides. See the next test for
  the compiled program.
  """
  with jax.disable_jit():
    five, two = _scan(name, 0)[1], _scan(name, 3)[1]
  np.testing.assert_array_equal(two, five[3:])
  assert len(np.unique(five[:, 0])) == 5


@pytest.mark.parametrize("name", SCANNED)
def test_a_compiled_image_does_not_know_its_batch(name):
  """The same to rounding: compiled for another batch, XLA may round differently.

  Not bitwise: on jax 0.10 (CPU) the last bit differs for some samplers and shapes, the
  same ones every time; on 0.12 no difference was seen.
  """
  five, two = _scanned(name, 0)[1], _scanned(name, 3)[1]
  np.testing.assert_allclose(two, five[3:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_scans_in_float64(name):
  """The carry has the dtype of the state, so that `sample` also runs under x64."""
  with jax.enable_x64(True):
    run = functools.partial(samplers.sample, gaussian(FLOW), MAKERS[name](FLOW))
    end, _ = jax.eval_shape(
      run, jnp.linspace(0.8, 0.0, 6), jnp.ones((2, 3)), keys_for(2)
    )
    assert end.shape == (2, 3)


def test_noise_is_sigma_eps_of_each_key():
  """The start has spread sigma(t), row by row from its own key."""
  schedule = schedules.Karras(sigma_max=80.0, rho=7.0)
  t = jnp.float32(0.5)
  x = samplers.noise(schedule, t, keys_for(4), (5_000,))
  assert_normal(x, 0.0, 80.0 * 0.5**7)
  np.testing.assert_array_equal(
    x[2:], samplers.noise(schedule, t, keys_for(2, 2), (5_000,))
  )


def test_sweeps_do_not_recompile():
  """Times, guidance scale, its interval and eta are traced: one trace serves all."""
  num_traces = 0
  main = gaussian(FLOW, param.Velocity())

  def reference(x, t):
    nonlocal num_traces
    num_traces += 1
    return param.Prediction(jnp.zeros_like(x), x / schedules.expand(t, x))

  @jax.jit
  def draw(times, scale, t_min, eta, x, keys):
    scale = guidance.within(scale, t_min, 0.9)
    guided = guidance.guide(main, reference, scale)
    return samplers.sample(guided, samplers.ddim(FLOW, eta), times, x, keys)[0]

  keys = keys_for(2)
  x = samplers.noise(FLOW, jnp.float32(0.9), keys, (4,))
  results = [
    draw(grid(FLOW, 6), scale, t_min, eta, x, keys)
    for grid, scale, t_min, eta in [
      (grids.uniform, 1.0, 0.1, 0.0),
      (grids.uniform, 4.0, 0.1, 0.0),
      (grids.uniform, 4.0, 0.4, 0.0),
      (grids.uniform, 4.0, 0.4, 1.0),
      (grids.uniform_logsnr, 4.0, 0.4, 1.0),
    ]
  ]
  assert num_traces == 1
  for one, other in itertools.pairwise(results):
    assert float(jnp.max(jnp.abs(one - other))) > 1e-3


def _many(sampler, schedule, num_steps=48):
  """Draws [1, 4096] of a stochastic sampler, from exact noise."""
  times = grids.uniform_logsnr(schedule, num_steps)
  keys = keys_for(1)
  z = np.random.default_rng(1).standard_normal((1, 4096))
  x = jnp.asarray(state_of(CASE["vp_linear"], times[0], z), jnp.float32)
  run = jax.jit(lambda x: samplers.sample(gaussian(schedule), sampler, times, x, keys))
  return np.asarray(run(x)[0])


def _distance_from_data(x) -> float:
  return abs(x.mean() - MEAN) + abs(x.std() - STD)


def test_dpmpp_2m_sde_draws_from_the_data_better_than_ddpm():
  """Of second order: after as many steps nearer to the law of the data."""
  schedule = CASE["vp_linear"].schedule
  better, worse = (
    _distance_from_data(_many(make(schedule), schedule, 24))
    for make in (multistep.dpmpp_2m_sde, samplers.ddpm)
  )
  assert better < 0.05 and better < 0.5 * worse


def test_churn_of_nothing_is_its_sampler_and_any_keeps_the_law():
  schedule = CASE["vp_linear"].schedule
  plain = _many(samplers.heun(schedule), schedule)
  none = _many(samplers.churn(schedule, samplers.heun, 0.0), schedule)
  np.testing.assert_array_equal(none, plain)
  some = _many(samplers.churn(schedule, samplers.heun, 0.2), schedule)
  assert np.abs(some - plain).mean() > 0.1  # it is another path ...
  # ... to the same data, but for four standard errors of 4,096 draws.
  assert _distance_from_data(some) < 4.0 * STD * (1 / 64 + 1 / 90)


def test_unipc_corrects_with_the_next_x0():
  """One step and its correction, by Zhao et al. 2023 eq. 3-8 in float64."""
  schedule, times = CASE["vp_linear"].schedule, jnp.array([0.7, 0.5, 0.4])
  x = jnp.array([[0.3, -1.0]])

  def denoise(x, t):
    return gaussian(schedule)(x, t)

  out, _ = samplers.sample(denoise, multistep.unipc(schedule), times, x, keys_for(1))
  a, s = (np.asarray(f(times), np.float64) for f in (schedule.alpha, schedule.sigma))
  lam = np.log(a / s)

  def x0(x, i):
    return np.asarray(denoise(jnp.float32(x), times[i][None]).x0, np.float64)

  def hold(x, i, m):
    return s[i + 1] / s[i] * x - a[i + 1] * np.expm1(lam[i] - lam[i + 1]) * m

  first = x0(x, 0)
  second = x0(hold(np.asarray(x), 0, first), 1)
  corrected = hold(np.asarray(x), 0, first + 0.5 * (second - first))
  ratio = (lam[2] - lam[1]) / (lam[1] - lam[0])
  wanted = hold(corrected, 1, second + 0.5 * ratio * (second - first))
  np.testing.assert_allclose(out, wanted, rtol=1e-5)
