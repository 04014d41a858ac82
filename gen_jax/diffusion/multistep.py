"""Multistep samplers: x0 or eps extrapolated from earlier steps, or corrected.

    plms      eps from the last four evaluations, all the same time apart    order 2
    dpmpp_2m  x0 linear in log-SNR, from the last two evaluations            order 2
    dpmpp_2s  x0 of the middle of the step                                   order 2
    dpmpp_3m  x0 quadratic in log-SNR, from the last three evaluations       order 3
    unipc     dpmpp_2m, corrected once x0 at the step's end is known         order 3
    belm      a parabola through two states, which also runs backwards       order 2

and dpmpp_2m_sde, with noise. h is the length of a step in half-log-SNR. The contract is
that of `samplers`. They equal the schedulers of diffusers 0.42 step for step where both
start and end alike (`tests/diffusion/test_scheduler_golden.py`).

Sources: Liu et al. 2022 (arXiv:2202.09778) eq. 12; Lu et al. 2022 (2211.01095) alg.
1-2; Zhao et al. 2023 (2302.04867) alg. 1-2.
"""

import jax
import jax.numpy as jnp

from gen_jax import ranges, rng
from gen_jax.diffusion import samplers
from gen_jax.diffusion import schedule as schedules
from gen_jax.types import Array


def plms(schedule: schedules.Schedule) -> samplers.Sampler:
  """Adams-Bashforth of order 4 in eps, applied with the step of `ddim`.

  The first step is improved Euler, with a second evaluation at its end (none at t = 0);
  the next two are of lower order. Meant for grids uniform in t; since their steps are
  not uniform in sigma / alpha, its order is 2.
  Source: Liu et al. 2022 eq. 12, started as in Rombach et al. 2022.
  """
  weights = jnp.array(
    [[1, 0, 0, 0], [3 / 2, -1 / 2, 0, 0], [23 / 12, -16 / 12, 5 / 12, 0],
     [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
  )  # fmt: skip

  def init(x):
    return jnp.zeros((4, *x.shape), x.dtype), jnp.int32(0)

  def step(denoise, x, carry, t, s, keys):
    del keys
    past, num = carry
    near = samplers.call(denoise, x, t)

    def move(eps):
      # The x0 that solves x = alpha x0 + sigma eps; the network's x0 at alpha = 0.
      alpha = schedule.alpha(t)
      gap = schedule.sigma(t) / jnp.maximum(alpha, 1e-6) * (eps - near.eps)
      x0 = jnp.where(alpha > 1e-6, near.x0 - gap, near.x0)
      return schedule.alpha(s) * x0 + schedule.sigma(s) * eps

    def begin():
      return 0.5 * (near.eps + samplers.call(denoise, move(near.eps), s).eps)

    past = jnp.concatenate([near.eps[None], past[:3]])
    mixed = jnp.tensordot(weights[jnp.minimum(num, 3)].astype(x.dtype), past, 1)
    is_first = (num == 0) & (schedule.sigma(s) > 0)
    eps = jax.lax.cond(is_first, begin, lambda: mixed)
    return move(eps), (past, num + 1)

  return samplers.Sampler(init, step)


def _half_logsnr(schedule: schedules.Schedule, t: Array, s: Array) -> Array:
  """h, the length of a step in half-log-SNR; may be infinite."""
  return 0.5 * (schedule.logsnr(s) - schedule.logsnr(t))


def _carried(schedule, x: Array, t: Array, s: Array, x0: Array) -> Array:
  """The exact step from t to s for an x0 that is constant over it."""
  ratio = schedule.sigma(s) / schedule.sigma(t)
  return ratio * x + (schedule.alpha(s) - ratio * schedule.alpha(t)) * x0


def _phi_2(h: Array) -> Array:
  """(h - 1 + exp(-h)) / h^2, by its series where that would cancel."""
  series = 0.5 - h / 6.0 + h**2 / 24.0 - h**3 / 120.0 + h**4 / 720.0
  large = jnp.where(h < 0.2, 1.0, h)
  return jnp.where(h < 0.2, series, (large + jnp.expm1(-large)) / large**2)


def _share(part: Array, whole: Array) -> Array:
  """part / whole; 0 where either is infinite."""
  known = jnp.isfinite(part) & jnp.isfinite(whole)
  return jnp.where(known, part / jnp.where(known, whole, 1.0), 0.0)


def dpmpp_2m(schedule: schedules.Schedule) -> samplers.Sampler:
  """DPM-Solver++(2M): x0 extrapolated in half-log-SNR. Lu et al. 2022 alg. 2.

  Order 1 on the first step and on steps of infinite length in log-SNR (to t = 0, or
  from alpha = 0).
  """

  def init(x):
    return x, jnp.array(jnp.inf)  # previous x0 (unused at first), previous step

  def step(denoise, x, carry, t, s, keys):
    del keys
    previous, h_previous = carry
    x0, _ = samplers.call(denoise, x, t)
    h = _half_logsnr(schedule, t, s)
    slope = 0.5 * _share(h, h_previous)
    return _carried(schedule, x, t, s, x0 + slope * (x0 - previous)), (x0, h)

  return samplers.Sampler(init, step)


def dpmpp_2m_sde(schedule: schedules.Schedule) -> samplers.Sampler:
  """SDE-DPM-Solver++(2M): the reverse SDE, with fresh noise at every step.

  Source: Lu et al. 2022 section 5 (data prediction, midpoint).
  """

  def init(x):
    return x, jnp.array(jnp.inf)

  def step(denoise, x, carry, t, s, keys):
    previous, h_previous = carry
    x0, _ = samplers.call(denoise, x, t)
    h = _half_logsnr(schedule, t, s)
    guess = x0 + 0.5 * _share(h, h_previous) * (x0 - previous)
    fresh = -jnp.expm1(-2.0 * h)
    kept = schedule.sigma(s) / schedule.sigma(t) * jnp.exp(-h)
    noise = schedule.sigma(s) * jnp.sqrt(fresh) * rng.normal(keys, x.shape[1:])
    return kept * x + schedule.alpha(s) * fresh * guess + noise, (x0, h)

  return samplers.Sampler(init, step)


def dpmpp_2s(schedule: schedules.Schedule) -> samplers.Sampler:
  """DPM-Solver++(2S): x0 at the step's midpoint in log-SNR. Lu et al. 2022 alg. 1.

  Two evaluations a step, one if the step's length in log-SNR is infinite.
  """

  def step(denoise, x, carry, t, s, keys):
    del keys
    near, _ = samplers.call(denoise, x, t)
    is_finite = jnp.isfinite(_half_logsnr(schedule, t, s))

    def correct():
      ends = [jnp.where(is_finite, schedule.logsnr(e), 0.0) for e in (t, s)]
      middle = jnp.clip(schedule.t_of(0.5 * (ends[0] + ends[1])), s, t)
      there = _carried(schedule, x, t, middle, near)
      return samplers.call(denoise, there, middle).x0

    x0 = jax.lax.cond(is_finite, correct, lambda: near)
    return _carried(schedule, x, t, s, x0), carry

  return samplers.Sampler(samplers.no_carry, step)


def dpmpp_3m(
  schedule: schedules.Schedule, curve: ranges.Finite | Array = 1.0
) -> samplers.Sampler:
  """DPM-Solver++(3M): a parabola through the last three x0. Lu et al. 2022 eq. 12.

  Lower orders on the first two steps and on steps of infinite length. `curve` scales
  the quadratic term: the authors' code and its ports have 1/2, which gives order 2.
  """

  def init(x):
    far = jnp.array(jnp.inf)
    return (x, x), (far, far)

  def step(denoise, x, carry, t, s, keys):
    del keys
    (x0_1, x0_2), (h_1, h_2) = carry  # one and two steps ago
    x0, _ = samplers.call(denoise, x, t)
    h = _half_logsnr(schedule, t, s)
    d1_0 = _share(h, h_1) * (x0 - x0_1)  # divided differences times h
    d1_1 = _share(h, h_2) * (x0_1 - x0_2)
    is_third = jnp.isfinite(h) & jnp.isfinite(h_1) & jnp.isfinite(h_2)
    span = jnp.where(is_third, h_1 + h_2, 1.0)
    bend = jnp.where(is_third, d1_0 - d1_1, 0.0)
    length = jnp.where(is_third, h, 1.0)
    d1 = d1_0 + jnp.where(is_third, h_1, 0.0) / span * bend
    d2 = curve * length / span * bend
    # Integrals of the exponential times 1, d1's and d2's terms, over the first.
    phi = -jnp.expm1(-length)
    linear = jnp.where(is_third, length * _phi_2(length) / phi, 0.5)
    square = jnp.where(is_third, (1.0 - 2.0 * _phi_2(length)) / phi, 0.0)
    guess = x0 + linear * d1 + square * d2
    return _carried(schedule, x, t, s, guess), ((x0, x0_1), (h, h_1))

  return samplers.Sampler(init, step)


def unipc(schedule: schedules.Schedule) -> samplers.Sampler:
  """UniPC of order 2 with B2(h): `dpmpp_2m` as predictor, with a corrector.

  The x0 evaluated at a step's start also corrects the step before, at no further cost;
  the last step is not corrected. Source: Zhao et al. 2023 alg. 1-2.
  """

  def init(x):
    far = jnp.array(jnp.inf)
    return (x, x, x), (jnp.array(1.0), far, far)

  def step(denoise, x, carry, t, s, keys):
    del keys
    (x_1, x0_1, x0_2), (t_1, h_1, h_2) = carry  # one and two steps ago
    x0, _ = samplers.call(denoise, x, t)
    # Correct the step before, from x_1 at t_1 to here.
    known = jnp.isfinite(h_1)
    h = jnp.where(known, h_1, 1.0)
    has_two = jnp.isfinite(h_2) & known
    r_1 = jnp.where(has_two, -_share(h_2, h_1), -1.0)
    phi = -jnp.expm1(-h)
    b_1, b_2 = h * _phi_2(h) / phi, 2.0 * (0.5 - _phi_2(h)) / phi
    rho_1 = jnp.where(has_two, (b_1 - b_2) / (1.0 - r_1), 0.0)
    rho_2 = jnp.where(has_two, b_1 - rho_1, 0.5)
    corrected = x0_1 + rho_1 / r_1 * (x0_2 - x0_1) + rho_2 * (x0 - x0_1)
    start = jnp.where(known, t_1, t)
    x = jnp.where(known, _carried(schedule, x_1, start, t, corrected), x)
    h = _half_logsnr(schedule, t, s)
    predicted = x0 + 0.5 * _share(h, h_1) * (x0 - x0_1)
    return _carried(schedule, x, t, s, predicted), ((x, x0, x0_1), (t, h, h_1))

  return samplers.Sampler(init, step)


def belm(schedule: schedules.Schedule) -> samplers.Sampler:
  """O-BELM: a parabola through the last two states with the slope at the last one.

  Reversible: the same steps backwards, carry included, return every state up to
  rounding, so inversion of an image is exact for any network. Order 2 after a first
  Euler step.

  Source: Wang et al. 2024 (arXiv:2410.07273), there in (x / alpha, sigma / alpha). Here
  in x / (alpha + sigma), w = sigma / (alpha + sigma), whose steps are more even: theirs
  grow with noise, and the first step's error with their square.
  """

  def scales(t):
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return alpha + sigma, sigma / (alpha + sigma)

  def init(x):
    return x, jnp.array(jnp.inf)  # the previous x / c, and its w

  def step(denoise, x, carry, t, s, keys):
    del keys
    y_1, w_1 = carry
    (c, w), (c_s, w_s) = scales(t), scales(s)
    x0, eps = samplers.call(denoise, x, t)
    y, slope = x / c, eps - x0
    h, h_1 = w_s - w, w_1 - w
    known = jnp.isfinite(h_1) & (h_1 != 0)
    h_1 = jnp.where(known, h_1, 1.0)
    bend = jnp.where(known, (y_1 - y - h_1 * slope) / h_1**2, 0.0)
    return c_s * (y + h * slope + h**2 * bend), (y, w)

  return samplers.Sampler(init, step)


ALL = (*samplers.ALL, plms, dpmpp_2m, dpmpp_2m_sde, dpmpp_2s, dpmpp_3m, unipc, belm)
