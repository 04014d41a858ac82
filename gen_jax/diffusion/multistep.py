"""Samplers that remember: x0 or eps extrapolated from steps before, or corrected.

    plms      eps from the last four evaluations, all the same time apart    order 2
    dpmpp_2m  x0 linear in log-SNR, from the last two evaluations            order 2
    dpmpp_2s  x0 of the middle of the step                                   order 2
    dpmpp_3m  x0 quadratic in log-SNR, from the last three evaluations       order 3
    unipc     dpmpp_2m, corrected once x0 at the step's end is known         order 3
    belm      a parabola through two states, which also runs backwards       order 2

and dpmpp_2m_sde, with noise. h is the length of a step in half-log-SNR. The contract is
that of `samplers`. They agree step for step with the schedulers of diffusers 0.42 where
both begin and end alike (`tests/diffusion/test_scheduler_golden.py`).

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
  """Adams-Bashforth of order 4 in eps, carried by the step of `ddim`.

  The first step is improved Euler, with a second evaluation at its end (none at t = 0);
  the next two use what there is. Meant for grids that are uniform in t; as even steps
  there are uneven ones in sigma / alpha, it is of order 2 as a whole.
  Source: Liu et al. 2022 eq. 12, begun as Rombach et al. 2022 do.
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
      # x0 that goes with the mixture at this x; x0 itself where alpha is 0.
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
  """The exact step from t to s for an x0 that is constant in between."""
  ratio = schedule.sigma(s) / schedule.sigma(t)
  return ratio * x + (schedule.alpha(s) - ratio * schedule.alpha(t)) * x0


def _phi_2(h: Array) -> Array:
  """(h - 1 + exp(-h)) / h^2, by its series where that would cancel."""
  small = 0.5 - h / 6.0 + h**2 / 24.0 - h**3 / 120.0 + h**4 / 720.0
  safe = jnp.where(h < 0.2, 1.0, h)
  return jnp.where(h < 0.2, small, (safe + jnp.expm1(-safe)) / safe**2)


def _share(part: Array, whole: Array) -> Array:
  """part / whole; 0 where either is infinite."""
  known = jnp.isfinite(part) & jnp.isfinite(whole)
  return jnp.where(known, part / jnp.where(known, whole, 1.0), 0.0)


def dpmpp_2m(schedule: schedules.Schedule) -> samplers.Sampler:
  """DPM-Solver++(2M): x0 extrapolated in half-log-SNR. Lu et al. 2022 alg. 2.

  First order on the first step, and on a step whose length in log-SNR is infinite
  (to t = 0, or from alpha = 0).
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
  """DPM-Solver++(2M) on the reverse SDE: as much noise goes as comes.

  Source: Lu et al. 2022 section 5 (the form with x0 and midpoint).
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
  """DPM-Solver++(2S): x0 of the step's middle in log-SNR. Lu et al. 2022 alg. 1.

  Two evaluations a step, one on a step whose length in log-SNR is infinite.
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

  Lower orders on the first two steps, and where a step is infinitely long. `curve` is
  the share of the parabola's bend that counts: the authors' code, and others after it,
  has 1/2, which leaves order 2.
  """

  def init(x):
    far = jnp.array(jnp.inf)
    return (x, x), (far, far)

  def step(denoise, x, carry, t, s, keys):
    del keys
    (one, two), (h_one, h_two) = carry
    x0, _ = samplers.call(denoise, x, t)
    h = _half_logsnr(schedule, t, s)
    first = _share(h, h_one) * (x0 - one)  # slopes, times the step
    second = _share(h, h_two) * (one - two)
    third = jnp.isfinite(h) & jnp.isfinite(h_one) & jnp.isfinite(h_two)
    span = jnp.where(third, h_one + h_two, 1.0)
    bend = jnp.where(third, first - second, 0.0)
    h_safe = jnp.where(third, h, 1.0)
    slope = first + jnp.where(third, h_one, 0.0) / span * bend
    bow = curve * h_safe / span * bend
    # Integrals of the exponential with 1, the slope and the curve, over that with 1.
    phi = -jnp.expm1(-h_safe)
    linear = jnp.where(third, h_safe * _phi_2(h_safe) / phi, 0.5)
    square = jnp.where(third, (1.0 - 2.0 * _phi_2(h_safe)) / phi, 0.0)
    guess = x0 + linear * slope + square * bow
    return _carried(schedule, x, t, s, guess), ((x0, one), (h, h_one))

  return samplers.Sampler(init, step)


def unipc(schedule: schedules.Schedule) -> samplers.Sampler:
  """UniPC of order 2 with B2(h): `dpmpp_2m`, each step corrected from its far end.

  The x0 that opens a step also corrects the step before, at no further evaluation; the
  last one stays as predicted. Source: Zhao et al. 2023 alg. 1-2.
  """

  def init(x):
    far = jnp.array(jnp.inf)
    return (x, x, x), (jnp.array(1.0), far, far)

  def step(denoise, x, carry, t, s, keys):
    del keys
    (start, one, two), (t_one, h_one, h_two) = carry
    x0, _ = samplers.call(denoise, x, t)
    # The step before: from `start` at t_one, where x0 was `one`, to here.
    known = jnp.isfinite(h_one)
    h = jnp.where(known, h_one, 1.0)
    back = -_share(h_two, h_one)  # where x0 was `two`, in units of that step
    phi = -jnp.expm1(-h)
    b_one, b_two = h * _phi_2(h) / phi, 2.0 * (0.5 - _phi_2(h)) / phi
    has_two = jnp.isfinite(h_two) & known
    safe = jnp.where(has_two, back, -1.0)
    weight = jnp.where(has_two, (b_one - b_two) / (1.0 - safe), 0.0)
    rest = jnp.where(has_two, b_one - weight, 0.5)
    slope = weight / safe * (two - one)
    guess = one + slope + rest * (x0 - one)
    at = jnp.where(known, t_one, t)
    x = jnp.where(known, _carried(schedule, start, at, t, guess), x)
    h_now = _half_logsnr(schedule, t, s)
    ahead = x0 + 0.5 * _share(h_now, h_one) * (x0 - one)
    return _carried(schedule, x, t, s, ahead), ((x, x0, one), (t, h_now, h_one))

  return samplers.Sampler(init, step)


def belm(schedule: schedules.Schedule) -> samplers.Sampler:
  """A parabola through the last two states with the slope at the last one: O-BELM.

  The parabola does not know which way time runs, so that the same steps taken back from
  where they ended, carry included, pass through every state again to rounding: this
  inverts an image exactly, on any network. Of order 2 after a first step of Euler's.

  Source: Wang et al. 2024 (arXiv:2410.07273), there in (x / alpha, sigma / alpha). Here
  in x / (alpha + sigma), where steps are more even: upwards theirs grow, and the error
  of the first one with their square.
  """

  def place(t):
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return alpha + sigma, sigma / (alpha + sigma)

  def init(x):
    return x, jnp.array(jnp.inf)  # the state before, and where it was

  def step(denoise, x, carry, t, s, keys):
    del keys
    before, past = carry
    (c, clock), (c_s, clock_s) = place(t), place(s)
    x0, eps = samplers.call(denoise, x, t)
    here, slope = x / c, eps - x0
    ahead, back = clock_s - clock, past - clock
    known = jnp.isfinite(back) & (back != 0)
    back = jnp.where(known, back, 1.0)
    bend = jnp.where(known, (before - here - back * slope) / back**2, 0.0)
    return c_s * (here + ahead * slope + ahead**2 * bend), (here, clock)

  return samplers.Sampler(init, step)


ALL = (*samplers.ALL, plms, dpmpp_2m, dpmpp_2m_sde, dpmpp_2s, dpmpp_3m, unipc, belm)
