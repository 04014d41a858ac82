"""Loss weights: each paper's weight, on whatever the network is asked for."""

import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion import parameterisation as param
from gen_jax.diffusion import schedule as schedules
from gen_jax.diffusion import weighting
from tests.diffusion import oracle

TIMES = jnp.asarray(oracle.TIMES)
WIDE = oracle.wide(oracle.TIMES)


def _min_snr(alpha, sigma):
  """Hang et al. 2023: min(SNR, 5) on x0."""
  return np.minimum((alpha / sigma) ** 2, 5.0)


def _edm(alpha, sigma):
  """Karras et al. 2022 table 1: (s^2 + d^2) / (s d)^2 on the denoiser."""
  s, d = sigma / alpha, 0.5
  return (s**2 + d**2) / (s * d) ** 2


def _sigmoid(alpha, sigma):
  """Hoogeboom et al. 2024: sigmoid(-logsnr) on eps, times SNR on x0."""
  snr = (alpha / sigma) ** 2
  return snr / (1.0 + snr)


# A weighting, and the paper's weight on |x0 error|^2 in terms of (alpha, sigma).
WEIGHTINGS = [
  pytest.param(weighting.MinSNR(), _min_snr, id="min_snr"),
  pytest.param(weighting.EDMWeight(), _edm, id="edm"),
  pytest.param(weighting.Sigmoid(), _sigmoid, id="sigmoid"),
]


@pytest.mark.parametrize("case", oracle.CASES)
@pytest.mark.parametrize("target", oracle.TARGET_PARAMS)
@pytest.mark.parametrize(("weight", "on_x0"), WEIGHTINGS)
def test_loss_is_the_same_whatever_is_regressed(case, target, weight, on_x0):
  """w |out error|^2 is the paper's weight times |x0 error|^2 for every target."""
  alpha, sigma = case.alpha(WIDE), case.sigma(WIDE)
  x0_error = np.linspace(0.5, 2.0, len(WIDE))
  eps_error = -alpha / sigma * x0_error  # x_t is what it is
  out_error = param.combine(
    target,
    case.schedule,
    TIMES,
    jnp.asarray(x0_error, jnp.float32),
    jnp.asarray(eps_error, jnp.float32),
  )
  loss = weight(case.schedule, target, TIMES) * jnp.square(out_error)
  expected = on_x0(alpha, sigma) * x0_error**2
  held = sigma > 1e-9  # Score's weight is sigma^4 of x0's: below, 0 in float32
  np.testing.assert_allclose(loss[held], expected[held], rtol=1e-3)


@pytest.mark.parametrize("case", oracle.CASES)
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_on_x0_and_eps(case, gamma):
  """Hang et al. 2023: min(SNR, gamma) for x0, min(SNR, gamma) / SNR for eps."""
  weight = weighting.MinSNR(gamma)
  snr = np.exp(case.logsnr(WIDE))
  capped = np.minimum(snr, gamma)
  on_x0 = weight(case.schedule, param.X0(), TIMES)
  on_eps = weight(case.schedule, param.Eps(), TIMES)
  np.testing.assert_allclose(on_x0, capped, rtol=3e-4)
  np.testing.assert_allclose(on_eps, capped / snr, rtol=3e-4)


@pytest.mark.parametrize("case", oracle.VP_CASES)
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_on_v(case, gamma):
  """Hang et al. 2023: min(SNR, gamma) / (SNR + 1) for v, variance preserving."""
  snr = np.exp(case.logsnr(WIDE))
  got = weighting.MinSNR(gamma)(case.schedule, param.V(), TIMES)
  np.testing.assert_allclose(got, np.minimum(snr, gamma) / (snr + 1.0), rtol=3e-4)


@pytest.mark.parametrize(
  "schedule", [schedules.Cosine(), schedules.RectifiedFlow()], ids=["cosine", "flow"]
)
def test_min_snr_vanishes_at_zero_snr(schedule):
  """Where x_t holds no data, v and x0 say nothing and weigh nothing."""
  one = jnp.ones_like(TIMES)
  for target in (param.V(), param.X0()):
    weight = weighting.MinSNR()(schedule, target, one)
    assert np.all((weight >= 0.0) & (weight < 1e-15))


@pytest.mark.parametrize("case", oracle.CASES)
@pytest.mark.parametrize("sigma_data", [0.5, 1.2])
def test_edm_weight_is_1_on_its_own_output(case, sigma_data):
  """Karras et al. 2022: lambda(sigma) c_out^2 = 1, on any schedule."""
  weight = weighting.EDMWeight(sigma_data)
  got = weight(case.schedule, param.EDM(sigma_data), TIMES)
  np.testing.assert_allclose(got, 1.0, rtol=1e-5)


def test_edm_weight_at_alpha_0():
  """Pure noise is a regular point: 1 on EDM, 1 / sigma_data^2 on x0."""
  weight, schedule = weighting.EDMWeight(0.5), schedules.RectifiedFlow()
  one = jnp.ones_like(TIMES)
  np.testing.assert_allclose(weight(schedule, param.EDM(0.5), one), 1.0, rtol=1e-6)
  np.testing.assert_allclose(weight(schedule, param.X0(), one), 4.0, rtol=1e-6)


@pytest.mark.parametrize("case", oracle.CASES)
@pytest.mark.parametrize("bias", [0.0, -3.0])
def test_sigmoid_on_eps(case, bias):
  """Hoogeboom et al. 2024: sigmoid(b - logsnr) on the error in eps."""
  got = weighting.Sigmoid(bias)(case.schedule, param.Eps(), TIMES)
  expected = 1.0 / (1.0 + np.exp(case.logsnr(WIDE) - bias))
  np.testing.assert_allclose(got, expected, rtol=3e-4)


@pytest.mark.parametrize("target", oracle.TARGET_PARAMS)
def test_unit_is_1_on_the_output(target):
  """Ho et al. 2020 eq. 14: the simple loss, whatever the output."""
  got = weighting.Unit()(schedules.VPLinear(), target, TIMES)
  np.testing.assert_array_equal(got, np.ones(len(TIMES), np.float32))
