"""Targets: the coefficients of the papers, and one solve that undoes all of them."""

import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion import corrupt
from gen_jax.diffusion import parameterisation as param
from gen_jax.diffusion import schedule as schedules
from tests.diffusion import oracle

TIMES = jnp.asarray(oracle.TIMES)
WIDE = oracle.wide(oracle.TIMES)
EPSILON = 2.0**-24


def pair() -> tuple[jnp.ndarray, jnp.ndarray]:
  """Two unknowns (x0, eps), each float32 [B, 3, 2]."""
  values = np.random.default_rng(1).standard_normal((2, len(oracle.TIMES), 3, 2))
  return tuple(jnp.asarray(values, jnp.float32))


def column(values) -> np.ndarray:
  """float64 [B] -> [B, 1, 1]."""
  return np.asarray(values, np.float64)[:, None, None]


@pytest.mark.parametrize("case", oracle.CASES)
@pytest.mark.parametrize(("target", "row"), oracle.TARGET_ROWS)
def test_coefficients_and_determinant(case, target, row):
  """(a, b, det) are the table of the module, in float64 from the papers."""
  alpha, sigma = case.alpha(WIDE), case.sigma(WIDE)
  a, b, det = row(alpha, sigma, *case.slopes(WIDE))
  got = target.coefficients(case.schedule, TIMES)
  # rtol: a chain's velocity is a difference of two float32 nodes.
  np.testing.assert_allclose(got[0], a, rtol=3e-4, atol=1e-6)
  np.testing.assert_allclose(got[1], b, rtol=3e-4, atol=1e-6)
  got = param.determinant(target, case.schedule, TIMES)
  np.testing.assert_allclose(got, det, rtol=3e-4, atol=0.0)


@pytest.mark.parametrize("case", oracle.CASES)
@pytest.mark.parametrize(("target", "row"), oracle.TARGET_ROWS)
def test_solve_undoes_combine(case, target, row):
  """x0 and eps come back, to the rounding error of the 2x2 solve itself."""
  x0, eps = pair()
  alpha, sigma = case.alpha(WIDE), case.sigma(WIDE)
  a, b, det = (column(c) for c in row(alpha, sigma, *case.slopes(WIDE)))
  alpha, sigma = column(alpha), column(sigma)
  x_t = corrupt.corrupt(case.schedule, TIMES, x0, eps)
  out = param.combine(target, case.schedule, TIMES, x0, eps)
  got = param.solve(target, case.schedule, TIMES, x_t, out)
  # Every product below carries a few roundings, magnified by 1 / det.
  size_x = np.abs(alpha * x0) + np.abs(sigma * eps)
  size_out = np.abs(a * x0) + np.abs(b * eps)
  bound = 8.0 * EPSILON / np.abs(det)
  bound_x0 = bound * (np.abs(b) * size_x + sigma * size_out)
  bound_eps = bound * (alpha * size_out + np.abs(a) * size_x)
  assert np.all(np.abs(got.x0 - x0) <= bound_x0)
  assert np.all(np.abs(got.eps - eps) <= bound_eps)


# What is known at sigma = 0, where x_t = x0, and at alpha = 0, where x_t = eps.
CLEAN = {
  "x0": lambda x, out: (out, None),
  "eps": lambda x, out: (x, out),
  "v": lambda x, out: (x, out),
  "score": lambda x, out: (x, None),
  "edm": lambda x, out: (x, -out),
}


@pytest.mark.parametrize("case", oracle.CASES)
@pytest.mark.parametrize("name", CLEAN)
def test_exact_at_sigma_0(case, name):
  """At t = 0 the data is x_t (or what X0 says), and eps is read off where it can be."""
  x, out = pair()
  t = jnp.zeros_like(TIMES)
  got = param.solve(oracle.TARGETS[name], case.schedule, t, x, out)
  for one, other in zip(got, CLEAN[name](x, out), strict=True):
    if other is not None:
      np.testing.assert_allclose(one, other, rtol=1e-6)


def test_score_gives_back_eps_at_sigma_0():
  """The score of eps at sigma = 0 is finite and stands for that eps."""
  x0, eps = pair()
  t, schedule = jnp.zeros_like(TIMES), schedules.RectifiedFlow()
  out = param.combine(param.Score(), schedule, t, x0, eps)
  got = param.solve(param.Score(), schedule, t, x0, out)
  np.testing.assert_allclose(got.eps, eps, rtol=1e-6)


NOISE = {
  "x0": lambda x, out: (out, x),
  "v": lambda x, out: (-out, x),
  "velocity": lambda x, out: (x - out, x),
  "edm": lambda x, out: (0.5 * out, x),
}


@pytest.mark.parametrize("name", NOISE)
def test_exact_at_alpha_0(name):
  """At t = 1 of rectified flow the noise is x_t, and the output alone tells x0."""
  x, out = pair()
  t, schedule = jnp.ones_like(TIMES), schedules.RectifiedFlow()
  got = param.solve(oracle.TARGETS[name], schedule, t, x, out)
  for one, other in zip(got, NOISE[name](x, out), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("case", oracle.CASES)
def test_edm_of_unit_data_is_minus_v(case):
  """EDM with sigma_data = 1 is -v of the variance-preserving process of equal SNR."""
  x0, eps = pair()
  got = param.combine(param.EDM(1.0), case.schedule, TIMES, x0, eps)
  other = schedules.VPLinear()  # any VP schedule, at the times where its SNR is equal
  times = other.t_of(jnp.asarray(case.logsnr(WIDE), jnp.float32))
  v = param.combine(param.V(), other, times, x0, eps)
  np.testing.assert_allclose(got, -v, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", oracle.CASES)
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edm_is_table_1_of_karras(case, sigma_data):
  """x0 = c_skip x + c_out F(c_in x), x = x_t / alpha, and F has unit variance."""
  x_t, out = pair()
  s, d = column(case.sigma(WIDE) / case.alpha(WIDE)), sigma_data
  x = np.asarray(x_t, np.float64) / column(case.alpha(WIDE))
  c_skip, c_out = d**2 / (s**2 + d**2), s * d / np.sqrt(s**2 + d**2)
  c_in = 1.0 / np.sqrt(s**2 + d**2)
  target = param.EDM(sigma_data)
  scale = target.input_scale(case.schedule, TIMES)
  np.testing.assert_allclose(column(scale) * x_t, c_in * x, rtol=1e-4)
  got = param.solve(target, case.schedule, TIMES, x_t, out).x0
  np.testing.assert_allclose(got, c_skip * x + c_out * out, rtol=1e-4, atol=1e-5)
  a, b = (np.asarray(c, np.float64) for c in target.coefficients(case.schedule, TIMES))
  np.testing.assert_allclose((a * d) ** 2 + b**2, 1.0, rtol=1e-5)


@pytest.mark.parametrize("case", oracle.CASES)
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edm_input_has_unit_variance(case, sigma_data):
  """Var(scale x_t) = scale^2 (alpha^2 sigma_data^2 + sigma^2) = 1."""
  scale = param.EDM(sigma_data).input_scale(case.schedule, TIMES)
  variance = (case.alpha(WIDE) * sigma_data) ** 2 + case.sigma(WIDE) ** 2
  np.testing.assert_allclose(
    np.asarray(scale, np.float64) ** 2 * variance, 1.0, rtol=1e-4
  )


@pytest.mark.parametrize("name", [name for name in oracle.TARGETS if name != "edm"])
def test_other_targets_leave_the_input_alone(name):
  """Only EDM preconditions: every other network sees x_t itself."""
  scale = oracle.TARGETS[name].input_scale(schedules.Karras(), TIMES)
  np.testing.assert_array_equal(scale, jnp.ones_like(TIMES))


@pytest.mark.parametrize(
  ("target", "t", "sign"),
  [(param.X0(), 0.0, 1.0), (param.Eps(), 1.0, 1.0), (param.Score(), 1.0, -1.0)],
  ids=["x0_at_sigma_0", "eps_at_alpha_0", "score_at_alpha_0"],
)
def test_an_exact_network_is_finite_where_the_system_is_singular(target, t, sign):
  """Where the output only repeats x_t, the other unknown is 0 and not 0 / 0."""
  x, _ = pair()
  times = jnp.full_like(TIMES, t)
  got = param.solve(target, schedules.RectifiedFlow(), times, x, sign * x)
  known, unknown = got if t == 0.0 else got[::-1]
  np.testing.assert_array_equal(known, x)
  np.testing.assert_array_equal(unknown, jnp.zeros_like(x))
