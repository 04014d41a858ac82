"""Samplers: from noise at t = 1 to data at t = 0, one compiled scan.

All deterministic samplers solve the probability-flow ODE. Divide the state by any
c = p alpha + q sigma and the path moves in the plane of (x0, eps),

    x / c = w0 x0 + w1 eps,        w0 = alpha / c,    w1 = sigma / c,
    d(x / c) = x0 dw0 + eps dw1,

which is exact; a sampler only chooses how to approximate x0 and eps along the step.

    ddim      both constant over the step (any c gives the same), optional noise
    ddpm      the exact posterior q(x_s | x_t, x0): ddim with eta = 1
    euler     ddim(0) seen as Euler's method in (x / alpha, sigma / alpha)   order 1
    heun      average of both ends                                           order 2
    plms      eps from the last four evaluations, all the same time apart    order 2
    dpmpp_2m  x0 linear in log-SNR, from the last two evaluations            order 2
    dpmpp_2s  x0 of the middle of the step                                   order 2
    dpmpp_3m  x0 quadratic in log-SNR, from the last three evaluations       order 3
    unipc     dpmpp_2m, corrected once x0 at the step's end is known         order 3

With noise: ddim (eta), which is what others call Euler ancestral; dpmpp_2m_sde; and
`churn`, which turns any of these back a little before each step.

A sampler is a pair (init, step) and calls the model itself:

    init(x) -> carry
    step(denoise, x, carry, t, s, keys) -> (x at s, carry)       from t to s < t

with t, s float32 [] and keys [B]: image i depends on its own key alone, never on the
batch it was drawn in. Hyper-parameters (eta, ...) may be traced.

Sources: Ho et al. 2020 (arXiv:2006.11239) eq. 6-7; Song et al. 2020 (2010.02502) eq.
12, 16; Karras et al. 2022 (2206.00364) alg. 1-2; Lu et al. 2022 (2211.01095) alg. 1-2;
Liu et al. 2022 (2202.09778) eq. 12; Zhao et al. 2023 (2302.04867) alg. 1-2.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_jax import rng
from gen_jax.diffusion import guidance
from gen_jax.diffusion import parameterisation as param
from gen_jax.diffusion import schedule as schedules
from gen_jax.types import Array, PyTree

Step = Callable[
  [guidance.Denoise, Array, PyTree, Array, Array, Array], tuple[Array, PyTree]
]


class Sampler(NamedTuple):
  """A pair of pure functions, as in optax."""

  init: Callable[[Array], PyTree]
  step: Step


def sample(
  denoise: guidance.Denoise,
  sampler: Sampler,
  times: Array,
  x: Array,
  keys: Array,
  *,
  trace: Callable[[Array], Any] | None = None,
) -> tuple[Array, Any]:
  """Runs `sampler` along `times` in one `lax.scan`.

  Args:
    denoise: (x_t [B, ...], t [B]) -> Prediction.
    times: float32 [n + 1], falling; traced, so another grid does not recompile.
    x: float32 [B, ...], the state at times[0].
    keys: [B], one key per example; step i uses fold_in(keys, i).
    trace: what to keep of the state after every step; None keeps nothing.

  Returns:
    The state at times[n] [B, ...], and `trace` stacked over steps [n, ...] (or None).
  """

  def body(state, inputs):
    x, carry = state
    i, t, s = inputs
    x, carry = sampler.step(denoise, x, carry, t, s, rng.fold_in(keys, i))
    return (x, carry), trace(x) if trace else None

  steps = (jnp.arange(times.shape[0] - 1), times[:-1], times[1:])
  (x, _), kept = jax.lax.scan(body, (x, sampler.init(x)), steps)
  return x, kept


def noise(schedule: schedules.Schedule, t: Array, keys: Array, shape) -> Array:
  """The start: sigma(t) eps, float32 [B, *shape]; row i from keys[i] alone."""
  return schedule.sigma(t) * rng.normal(keys, shape)


def _call(denoise: guidance.Denoise, x: Array, t: Array) -> param.Prediction:
  return denoise(x, jnp.broadcast_to(t, x.shape[:1]))


def _no_carry(x: Array) -> tuple[()]:
  del x
  return ()


def ddim(schedule: schedules.Schedule, eta: float | Array = 0.0) -> Sampler:
  """Song et al. 2020 eq. 12 in (alpha, sigma) form, for any Gaussian schedule.

  eta = 0 is deterministic, eta = 1 is ancestral sampling.
  """

  def step(denoise, x, carry, t, s, keys):
    x0, eps = _call(denoise, x, t)
    sigma_s = schedule.sigma(s)
    # Variance of the posterior q(x_s | x_t, x0), exact also where s is close to t.
    fresh = -jnp.expm1(schedule.logsnr(t) - schedule.logsnr(s))
    std = eta * sigma_s * jnp.sqrt(fresh)
    kept = jnp.sqrt(jnp.maximum(sigma_s**2 - std**2, 0.0))
    x = schedule.alpha(s) * x0 + kept * eps
    return x + std * rng.normal(keys, x.shape[1:]), carry

  return Sampler(_no_carry, step)


def ddpm(schedule: schedules.Schedule) -> Sampler:
  """Ancestral sampling by the posterior's mean and variance, Ho et al. 2020 eq. 6-7."""

  def step(denoise, x, carry, t, s, keys):
    x0, _ = _call(denoise, x, t)
    alpha_s, sigma_s = schedule.alpha(s), schedule.sigma(s)
    alpha_ts, sigma_t = schedule.alpha(t) / alpha_s, schedule.sigma(t)
    variance_ts = jnp.maximum(sigma_t**2 - (alpha_ts * sigma_s) ** 2, 0.0)
    mean = (alpha_ts * sigma_s**2 * x + alpha_s * variance_ts * x0) / sigma_t**2
    std = jnp.sqrt(variance_ts) * sigma_s / sigma_t
    return mean + std * rng.normal(keys, x.shape[1:]), carry

  return Sampler(_no_carry, step)


def euler(schedule: schedules.Schedule) -> Sampler:
  """Euler's method on d(x/alpha) = eps d(sigma/alpha). Karras et al. 2022."""

  def step(denoise, x, carry, t, s, keys):
    del keys
    alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(s)
    change = schedule.sigma(s) / alpha_s - schedule.sigma(t) / alpha_t
    slope = _call(denoise, x, t).eps
    return alpha_s * (x / alpha_t + change * slope), carry

  return Sampler(_no_carry, step)


def by_alpha(alpha: Array, sigma: Array) -> Array:
  """c = alpha: the coordinates of Karras et al. 2022, (x / alpha, sigma / alpha)."""
  del sigma
  return alpha


def by_sum(alpha: Array, sigma: Array) -> Array:
  """c = alpha + sigma: the coordinates of rectified flow, finite also at alpha = 0."""
  return alpha + sigma


def heun(
  schedule: schedules.Schedule,
  scale: Callable[[Array, Array], Array] = by_alpha,
) -> Sampler:
  """Trapezoidal rule in coordinates x / scale(alpha, sigma). Karras et al. 2022 alg. 1.

  Two evaluations a step, one on the step to t = 0, where the far slope is undefined.
  """

  def weights(t):
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    c = scale(alpha, sigma)
    return c, alpha / c, sigma / c

  def step(denoise, x, carry, t, s, keys):
    del keys
    (c_t, w0_t, w1_t), (c_s, w0_s, w1_s) = weights(t), weights(s)

    def move(p: param.Prediction) -> Array:
      return c_s * (x / c_t + (w0_s - w0_t) * p.x0 + (w1_s - w1_t) * p.eps)

    near = _call(denoise, x, t)
    guess = move(near)

    def correct():
      far = _call(denoise, guess, s)
      return move(jax.tree.map(lambda a, b: 0.5 * (a + b), near, far))

    return jax.lax.cond(schedule.sigma(s) > 0, correct, lambda: guess), carry

  return Sampler(_no_carry, step)


def euler_ancestral(schedule: schedules.Schedule, eta: float | Array = 1.0) -> Sampler:
  """Euler to a lower noise level, and the rest of it as fresh noise: `ddim`.

  In (x / alpha, sigma / alpha) the two are the same, eta = 1 their usual setting.
  """
  return ddim(schedule, eta)


def churn(
  schedule: schedules.Schedule,
  sampler: Callable[[schedules.Schedule], Sampler] = heun,
  gamma: float | Array = 0.1,
  t_min: float | Array = 0.05,
  t_max: float | Array = 0.98,
) -> Sampler:
  """`sampler`, with noise added before each step: sigma / alpha times 1 + gamma.

  gamma is S_churn / N of the paper, which keeps it below sqrt(2) - 1; it is 0 outside
  [t_min, t_max]. Source: Karras et al. 2022 alg. 2, for any schedule.
  """
  inner = sampler(schedule)

  def step(denoise, x, carry, t, s, keys):
    gain = jnp.where((t >= t_min) & (t <= t_max), gamma, 0.0)
    far = schedule.t_of(schedule.logsnr(t) - 2.0 * jnp.log1p(gain))
    far = jnp.where(gain > 0, jnp.maximum(far, t), t)
    scale = schedule.alpha(far) / schedule.alpha(t)
    variance = schedule.sigma(far) ** 2 - (scale * schedule.sigma(t)) ** 2
    noise_keys = rng.fold_in(keys, 1)
    fresh = jnp.sqrt(jnp.maximum(variance, 0.0)) * rng.normal(noise_keys, x.shape[1:])
    return inner.step(denoise, scale * x + fresh, carry, far, s, keys)

  return Sampler(inner.init, step)


def plms(schedule: schedules.Schedule) -> Sampler:
  """Adams-Bashforth of order 4 in eps, carried by the step of `ddim`.

  The first steps use what there is: orders 1, 2, 3. Meant for grids that are uniform in
  t. Source: Liu et al. 2022 eq. 12.
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
    x0, eps = _call(denoise, x, t)
    past = jnp.concatenate([eps[None], past[:3]])
    mixed = jnp.tensordot(weights[jnp.minimum(num, 3)].astype(x.dtype), past, 1)
    # x0 that goes with the mixture at this x; x0 itself where alpha is 0.
    alpha = schedule.alpha(t)
    x0 = jnp.where(
      alpha > 1e-6,
      x0 - schedule.sigma(t) / jnp.maximum(alpha, 1e-6) * (mixed - eps),
      x0,
    )
    return schedule.alpha(s) * x0 + schedule.sigma(s) * mixed, (past, num + 1)

  return Sampler(init, step)


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


def dpmpp_2m(schedule: schedules.Schedule) -> Sampler:
  """DPM-Solver++(2M): x0 extrapolated in half-log-SNR. Lu et al. 2022 alg. 2.

  First order on the first step, and on a step whose length in log-SNR is infinite
  (to t = 0, or from alpha = 0).
  """

  def init(x):
    return x, jnp.array(jnp.inf)  # previous x0 (unused at first), previous step

  def step(denoise, x, carry, t, s, keys):
    del keys
    previous, h_previous = carry
    x0, _ = _call(denoise, x, t)
    h = _half_logsnr(schedule, t, s)
    slope = 0.5 * _share(h, h_previous)
    return _carried(schedule, x, t, s, x0 + slope * (x0 - previous)), (x0, h)

  return Sampler(init, step)


def dpmpp_2m_sde(schedule: schedules.Schedule) -> Sampler:
  """DPM-Solver++(2M) on the reverse SDE: as much noise goes as comes.

  Source: Lu et al. 2022 section 5 (the form with x0 and midpoint).
  """

  def init(x):
    return x, jnp.array(jnp.inf)

  def step(denoise, x, carry, t, s, keys):
    previous, h_previous = carry
    x0, _ = _call(denoise, x, t)
    h = _half_logsnr(schedule, t, s)
    guess = x0 + 0.5 * _share(h, h_previous) * (x0 - previous)
    fresh = -jnp.expm1(-2.0 * h)
    kept = schedule.sigma(s) / schedule.sigma(t) * jnp.exp(-h)
    noise = schedule.sigma(s) * jnp.sqrt(fresh) * rng.normal(keys, x.shape[1:])
    return kept * x + schedule.alpha(s) * fresh * guess + noise, (x0, h)

  return Sampler(init, step)


def dpmpp_2s(schedule: schedules.Schedule) -> Sampler:
  """DPM-Solver++(2S): x0 of the step's middle in log-SNR. Lu et al. 2022 alg. 1.

  Two evaluations a step, one on a step whose length in log-SNR is infinite.
  """

  def step(denoise, x, carry, t, s, keys):
    del keys
    near, _ = _call(denoise, x, t)
    is_finite = jnp.isfinite(_half_logsnr(schedule, t, s))

    def correct():
      ends = [jnp.where(is_finite, schedule.logsnr(e), 0.0) for e in (t, s)]
      middle = jnp.clip(schedule.t_of(0.5 * (ends[0] + ends[1])), s, t)
      there = _carried(schedule, x, t, middle, near)
      return _call(denoise, there, middle).x0

    x0 = jax.lax.cond(is_finite, correct, lambda: near)
    return _carried(schedule, x, t, s, x0), carry

  return Sampler(_no_carry, step)


def dpmpp_3m(schedule: schedules.Schedule) -> Sampler:
  """DPM-Solver++(3M): a parabola through the last three x0. Lu et al. 2022 eq. 12.

  Lower orders on the first two steps, and where a step is infinitely long. The authors'
  code takes half of the parabola's curve, which leaves order 2.
  """

  def init(x):
    far = jnp.array(jnp.inf)
    return (x, x), (far, far)

  def step(denoise, x, carry, t, s, keys):
    del keys
    (one, two), (h_one, h_two) = carry
    x0, _ = _call(denoise, x, t)
    h = _half_logsnr(schedule, t, s)
    first = _share(h, h_one) * (x0 - one)  # slopes, times the step
    second = _share(h, h_two) * (one - two)
    third = jnp.isfinite(h) & jnp.isfinite(h_one) & jnp.isfinite(h_two)
    span = jnp.where(third, h_one + h_two, 1.0)
    bend = jnp.where(third, first - second, 0.0)
    h_safe = jnp.where(third, h, 1.0)
    slope = first + jnp.where(third, h_one, 0.0) / span * bend
    curve = h_safe / span * bend
    # Integrals of the exponential with 1, the slope and the curve, over that with 1.
    phi = -jnp.expm1(-h_safe)
    linear = jnp.where(third, h_safe * _phi_2(h_safe) / phi, 0.5)
    square = jnp.where(third, (1.0 - 2.0 * _phi_2(h_safe)) / phi, 0.0)
    guess = x0 + linear * slope + square * curve
    return _carried(schedule, x, t, s, guess), ((x0, one), (h, h_one))

  return Sampler(init, step)


def unipc(schedule: schedules.Schedule) -> Sampler:
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
    x0, _ = _call(denoise, x, t)
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

  return Sampler(init, step)


ALL = (
  ddpm,
  ddim,
  euler,
  euler_ancestral,
  heun,
  churn,
  plms,
  dpmpp_2m,
  dpmpp_2m_sde,
  dpmpp_2s,
  dpmpp_3m,
  unipc,
)
