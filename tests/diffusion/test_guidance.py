"""Guidance: extrapolation that does not depend on what the network was trained on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion import guidance
from gen_jax.diffusion import parameterisation as param
from gen_jax.diffusion import schedule as schedules
from tests.diffusion import oracle

FLOW = schedules.RectifiedFlow()
T = jnp.array([0.2, 0.5, 0.8] * 3)
X = jnp.asarray(np.random.default_rng(0).standard_normal((9, 3, 2)), jnp.float32)


def strong(x, t):
  """The output of a network, any network."""
  return jnp.sin(3.0 * x) + schedules.expand(t, x)


def weak(x, t):
  return 0.5 * jnp.cos(x) - schedules.expand(t, x)


def reader(network, schedule=FLOW, target=None) -> guidance.Denoise:
  """Denoise by a network trained on `target`."""
  target = target or param.V()
  return lambda x, t: param.solve(target, schedule, t, x, network(x, t))


MAIN, REFERENCE = reader(strong), reader(weak)


def assert_same(one: param.Prediction, other: param.Prediction, rtol=1e-5) -> None:
  for a, b in zip(one, other, strict=True):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


def test_scale_1_is_main_and_0_the_reference():
  """The two ends of the line."""
  assert_same(guidance.guide(MAIN, REFERENCE, 1.0)(X, T), MAIN(X, T), rtol=1e-6)
  assert_same(guidance.guide(MAIN, REFERENCE, 0.0)(X, T), REFERENCE(X, T), rtol=0.0)


@pytest.mark.parametrize("case", oracle.CASES)
@pytest.mark.parametrize("target", oracle.TARGET_PARAMS)
def test_guidance_commutes_with_conversion(case, target):
  """Guiding outputs, (1 - w) reference + w main, and then solving is the same."""
  scale = 3.0

  def guided_network(x, t):
    return (1.0 - scale) * weak(x, t) + scale * strong(x, t)

  networks = (guided_network, strong, weak)
  inside, main, reference = (reader(n, case.schedule, target) for n in networks)
  one, other = inside(X, T), guidance.guide(main, reference, scale)(X, T)
  for a, b in zip(one, other, strict=True):
    # x0 and eps reach 1 / det, so the rounding is that of the largest entry.
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5 * float(jnp.abs(a).max()))


def test_guided_prediction_is_consistent():
  """x_t = alpha x0 + sigma eps holds for the guided pair too."""
  x0, eps = guidance.guide(MAIN, REFERENCE, 5.0)(X, T)
  t = schedules.expand(T, X)
  np.testing.assert_allclose((1.0 - t) * x0 + t * eps, X, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("t_min", "t_max", "inside"),
  [
    (0.3, 0.7, [False, True, False]),
    (0.2, 0.5, [True, True, False]),  # both ends belong to it
    (0.5, 1.0, [False, True, True]),
    (0.9, 1.0, [False, False, False]),
  ],
)
def test_interval_example_by_example(t_min, t_max, inside):
  """Guided where t_min <= t <= t_max, main elsewhere."""
  scale = guidance.within(4.0, jnp.float32(t_min), jnp.float32(t_max))
  got = guidance.guide(MAIN, REFERENCE, scale)(X, T)
  yes, no = guidance.guide(MAIN, REFERENCE, 4.0)(X, T), MAIN(X, T)
  for i, within in enumerate(inside * 3):
    for a, b in zip(got, yes if within else no, strict=True):
      np.testing.assert_allclose(a[i], b[i], rtol=1e-5, atol=1e-5)
    assert float(jnp.max(jnp.abs(yes.x0[i] - no.x0[i]))) > 0.1


@pytest.mark.parametrize("phi", [0.0, 0.3, 1.0])
def test_rescale_mixes_the_spreads(phi):
  """The std of x0 is (1 - phi) guided + phi main, image by image."""
  guided = guidance.guide(MAIN, REFERENCE, 6.0)
  got = guidance.rescale(FLOW, guided, MAIN, phi)(X, T)

  def spread(denoise):
    return np.asarray(denoise(X, T).x0, np.float64).std((1, 2))

  expected = (1.0 - phi) * spread(guided) + phi * spread(MAIN)
  np.testing.assert_allclose(np.std(got.x0, (1, 2)), expected, rtol=1e-5)
  # One factor an image: x0 is scaled, nothing else happens to it.
  ratio = np.asarray(got.x0 / guided(X, T).x0)
  np.testing.assert_allclose(
    ratio, np.broadcast_to(ratio[:, :1, :1], X.shape), rtol=1e-5
  )
  assert len(np.unique(np.round(ratio[:, 0, 0], 4))) == (len(T) if phi else 1)
  t = schedules.expand(T, X)
  np.testing.assert_allclose((1.0 - t) * got.x0 + t * got.eps, X, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", oracle.CASES)
def test_rescale_0_is_guided(case):
  """phi = 0 changes neither x0 nor eps."""
  main, reference = (reader(n, case.schedule, param.X0()) for n in (strong, weak))
  guided = guidance.guide(main, reference, 3.0)
  one, other = guidance.rescale(case.schedule, guided, main, 0.0)(X, T), guided(X, T)
  for a, b in zip(one, other, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))


def test_rescale_survives_a_flat_image():
  """No spread to divide by: 0, not NaN."""

  def flat(x, t):
    del t
    return param.Prediction(jnp.zeros_like(x), x)

  got = guidance.rescale(FLOW, flat, MAIN, 1.0)(X, T)
  np.testing.assert_array_equal(got.x0, jnp.zeros_like(X))


def test_sweeps_do_not_recompile():
  """Scale, interval and phi are traced: one trace serves all, and each matters."""
  num_traces = 0

  def counted(x, t):
    nonlocal num_traces
    num_traces += 1
    return REFERENCE(x, t)

  @jax.jit
  def run(scale, t_min, t_max, phi):
    scale = guidance.within(scale, t_min, t_max)
    guided = guidance.guide(MAIN, counted, scale)
    return guidance.rescale(FLOW, guided, MAIN, phi)(X, T).x0

  sweep = [(3.0, 0.1, 0.9, 0.0), (5.0, 0.1, 0.9, 0.0), (5.0, 0.3, 0.9, 0.0)]
  sweep += [(5.0, 0.3, 0.6, 0.0), (5.0, 0.3, 0.6, 0.7)]
  results = [np.asarray(run(*point)) for point in sweep]
  assert num_traces == 1
  assert len({result.tobytes() for result in results}) == len(sweep)


def test_two_scales():
  """Brooks et al. 2023 (arXiv:2211.09800) eq. 3, written out; each network once."""
  calls = []

  def middle(x, t):
    calls.append(None)
    return jnp.cos(2.0 * x)

  predictions = (REFERENCE, reader(middle), MAIN)
  none, image, both = (prediction(X, T) for prediction in predictions)
  calls.clear()
  got = guidance.multi_guidance(guidance.each(*predictions), (1.5, 7.5))(X, T)
  assert len(calls) == 1
  for out, n, i, b in zip(got, none, image, both, strict=True):
    wanted = n + 1.5 * (i - n) + 7.5 * (b - i)
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)


def test_equal_scales_are_one_scale():
  """What lies between cancels."""
  predictions = (REFERENCE, reader(lambda x, t: x**2), MAIN)
  one = guidance.multi_guidance(guidance.each(*predictions), (3.0, 3.0))(X, T)
  assert_same(one, guidance.guide(MAIN, REFERENCE, 3.0)(X, T), rtol=1e-4)


def test_side_by_side_is_one_by_one():
  """Rows of one image under several conditions come back to their rungs."""
  gains = jnp.array([1.0, 2.0, 3.0])

  def under(gain):  # a network whose condition is a number for each row
    return lambda x, t: strong(x, t) * schedules.expand(gain, x)

  size, calls = len(X), []

  def network(x, t):
    calls.append(x.shape)
    rows = guidance.interleave(*(jnp.full(size, gain) for gain in gains))
    return under(rows)(x, t)

  together = guidance.batched(reader(network), 3)(X, T)
  apart = guidance.each(*(reader(under(jnp.full(size, g))) for g in gains))(X, T)
  assert calls == [(3 * size, *X.shape[1:])]
  for one, other in zip(together, apart, strict=True):
    assert_same(one, other, rtol=1e-6)
