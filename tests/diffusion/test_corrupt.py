"""The forward process, and the laws of the times at which training looks at it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import rng
from gen_jax.diffusion import corrupt
from gen_jax.diffusion import schedule as schedules
from tests.diffusion import oracle

NUM_DRAWS = 2**15
FLOW = schedules.RectifiedFlow()


def keys_for(batch_size: int, seed: int = 0):
  return rng.per_example(jax.random.key(seed), batch_size)


@pytest.mark.parametrize("case", oracle.CASES)
def test_corrupt(case):
  """x_t = alpha x0 + sigma eps, every image at its own time."""
  t = oracle.TIMES
  x0, eps = np.random.default_rng(0).standard_normal((2, len(t), 3, 2))
  got = corrupt.corrupt(
    case.schedule,
    jnp.asarray(t),
    jnp.asarray(x0, jnp.float32),
    jnp.asarray(eps, jnp.float32),
  )
  alpha, sigma = (f(oracle.wide(t))[:, None, None] for f in case[1:])
  np.testing.assert_allclose(got, alpha * x0 + sigma * eps, rtol=1e-4, atol=1e-5)


def normal_cdf(values) -> np.ndarray:
  return np.array([0.5 * (1.0 + math.erf(v / math.sqrt(2.0))) for v in values])


def _uniform(t, low=0.1, high=0.7):
  return np.clip((t - low) / (high - low), 0.0, 1.0)


def _logit_normal(t, mean, std):
  """Esser et al. 2024 eq. 19."""
  return normal_cdf((np.log(t) - np.log(1.0 - t) - mean) / std)


def _log_normal_sigma(sigma_at, mean=-1.2, std=1.2):
  """Karras et al. 2022 table 1, by the sigma / alpha that t stands for."""
  return lambda t: normal_cdf((np.log(sigma_at(t)) - mean) / std)


# A time sampler, the schedule it serves, and P(time <= t) for t < 1.
SAMPLERS = [
  pytest.param(corrupt.UniformTime(0.1, 0.7), FLOW, _uniform, id="uniform"),
  pytest.param(corrupt.StratifiedTime(0.1, 0.7), FLOW, _uniform, id="stratified"),
  pytest.param(
    corrupt.UniformTime(), FLOW, lambda t: _uniform(t, 1e-3, 1.0), id="uniform_default"
  ),
  pytest.param(
    corrupt.LogitNormalTime(),
    FLOW,
    lambda t: _logit_normal(t, 0.0, 1.0),
    id="logit_normal_default",
  ),
  pytest.param(
    corrupt.LogitNormalTime(-0.5, 0.6),
    FLOW,
    lambda t: _logit_normal(t, -0.5, 0.6),
    id="logit_normal",
  ),
  pytest.param(
    corrupt.LogNormalSigma(),
    FLOW,
    _log_normal_sigma(lambda t: t / (1.0 - t)),
    id="log_normal_sigma_flow",
  ),
  pytest.param(
    corrupt.LogNormalSigma(),
    schedules.Karras(80.0, 7.0),
    _log_normal_sigma(lambda t: 80.0 * t**7),
    id="log_normal_sigma_karras",
  ),
  pytest.param(
    corrupt.LogNormalSigma(0.5, 1.5),
    schedules.Karras(5.0, 7.0),
    _log_normal_sigma(lambda t: 5.0 * t**7, 0.5, 1.5),
    id="log_normal_sigma_cut",
  ),
]


@pytest.mark.parametrize(("sampler", "schedule", "cdf"), SAMPLERS)
def test_law_of_times(sampler, schedule, cdf):
  """The empirical distribution is the paper's (Kolmogorov-Smirnov, p = 1e-4)."""
  t = np.sort(oracle.wide(sampler(schedule, keys_for(NUM_DRAWS))))
  assert t[0] > 0.0
  assert t[-1] <= 1.0
  rank = np.arange(NUM_DRAWS + 1) / NUM_DRAWS
  inside = t < 1.0  # a cut law has an atom at 1
  gap = np.maximum(np.abs(cdf(t[inside]) - rank[:-1][inside]), 0.0)
  assert np.max(gap) < 2.23 / np.sqrt(NUM_DRAWS)
  if not np.all(inside):
    atom = 1.0 - cdf(np.array([1.0]))[0]
    error = 4.0 * np.sqrt(atom * (1.0 - atom) / NUM_DRAWS)
    assert abs(np.mean(~inside) - atom) < error


def test_cut_at_the_noisiest_time():
  """Sigmas beyond the schedule's own become t = 1, not a time outside [0, 1]."""
  schedule = schedules.Karras(sigma_max=0.1)
  t = corrupt.LogNormalSigma(0.0, 1.0)(schedule, keys_for(NUM_DRAWS))
  assert float(t.max()) == 1.0
  assert 0.98 < np.mean(t == 1.0) < 1.0  # P(N(0, 1) > log 0.1) = 0.989


@pytest.mark.parametrize("batch_size", [6, 64])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_time_in_every_stratum(batch_size, seed):
  """B equal strata, B times, none shares a stratum."""
  sampler = corrupt.StratifiedTime(0.2, 0.6)
  t = oracle.wide(sampler(FLOW, keys_for(batch_size, seed)))
  strata = np.floor((t - 0.2) / 0.4 * batch_size)
  assert sorted(strata) == list(range(batch_size))


def test_stratified_entries_are_uniform_each():
  """Over many seeds entry i alone has the uniform law: the offset is not fixed."""
  sampler = corrupt.StratifiedTime(0.1, 0.7)
  keys = jnp.stack([keys_for(4096, seed) for seed in range(4)], 1)
  t = jax.jit(jax.vmap(lambda k: sampler(FLOW, k)))(keys)  # [4096, 4]
  rank = np.arange(4096) / 4096
  for i in (0, 3):
    gap = np.abs(_uniform(np.sort(oracle.wide(t[:, i]))) - rank)
    assert np.max(gap) < 2.23 / np.sqrt(4096)


@pytest.mark.parametrize(
  "sampler",
  [corrupt.UniformTime(), corrupt.LogitNormalTime(), corrupt.LogNormalSigma()],
  ids=lambda sampler: type(sampler).__name__,
)
def test_time_i_depends_on_key_i_alone(sampler):
  """Other keys, and how many there are, change nothing at i."""
  keys, others = keys_for(6), keys_for(6, seed=1)
  t = sampler(FLOW, keys)
  assert len(np.unique(t)) == 6
  np.testing.assert_array_equal(sampler(FLOW, keys[2:4]), t[2:4])
  mixed = jnp.where(jnp.arange(6) == 3, keys, others)
  changed = np.asarray(sampler(FLOW, mixed) != t)
  np.testing.assert_array_equal(changed, np.arange(6) != 3)


def test_stratified_time_depends_on_the_first_key_alone():
  """One offset serves the batch: only keys[0] matters."""
  sampler, keys, others = corrupt.StratifiedTime(), keys_for(6), keys_for(6, seed=1)
  t = sampler(FLOW, keys)
  mixed = jnp.where(jnp.arange(6) == 0, keys, others)
  np.testing.assert_array_equal(sampler(FLOW, mixed), t)
  assert np.all(sampler(FLOW, others) != t)
