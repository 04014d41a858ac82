"""Samplers: from noise at t = 1 to data at t = 0, one compiled scan.

All deterministic samplers solve the probability-flow ODE. Divide the state by any
c = p alpha + q sigma and the path moves in the plane of (x0, eps),

    x / c = w0 x0 + w1 eps,        w0 = alpha / c,    w1 = sigma / c,
    d(x / c) = x0 dw0 + eps dw1,

which is exact; samplers differ in how they approximate x0 and eps over a step.

    ddim      both constant over the step (for any c), optional noise
    ddpm      the exact posterior q(x_s | x_t, x0): ddim with eta = 1
    euler     ddim(0): Euler's method in (x / alpha, sigma / alpha)          order 1
    heun      average of both ends                                           order 2

and those of `multistep`. Stochastic: ddim (eta), elsewhere called Euler ancestral, and
`churn`, which adds noise before each step of any sampler.

A sampler is a pair (init, step) and calls the model itself:

    init(x) -> carry
    step(denoise, x, carry, t, s, keys) -> (x at s, carry)       from t to s < t

with t, s float32 [] and keys [B]: image i depends on keys[i] only, never on the rest
of its batch. Hyper-parameters (eta, ...) may be traced.

Sources: Ho et al. 2020 (arXiv:2006.11239) eq. 6-7; Song et al. 2020 (2010.02502) eq.
12, 16; Karras et al. 2022 (2206.00364) alg. 1-2.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_jax import ranges, rng
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


def integrate(
  denoise: guidance.Denoise,
  sampler: Sampler,
  times: Array,
  x: Array,
  carry: PyTree,
  keys: Array,
  *,
  trace: Callable[[Array], Any] | None = None,
) -> tuple[tuple[Array, PyTree], Any]:
  """`sample` from a given carry: ((state, carry) at times[n], the stacked `trace`)."""

  def body(state, inputs):
    (x, carry), (i, t, s) = state, inputs
    x, carry = sampler.step(denoise, x, carry, t, s, rng.fold_in(keys, i))
    return (x, carry), trace(x) if trace else None

  steps = (jnp.arange(times.shape[0] - 1), times[:-1], times[1:])
  return jax.lax.scan(body, (x, carry), steps)


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
    trace: function of the state whose result is kept after every step; None: nothing.

  Returns:
    The state [B, ...] at times[n], and `trace` stacked over steps [n, ...] (or None).
  """
  carry = sampler.init(x)
  (x, _), kept = integrate(denoise, sampler, times, x, carry, keys, trace=trace)
  return x, kept


def noise(schedule: schedules.Schedule, t: Array, keys: Array, shape) -> Array:
  """The initial state sigma(t) eps, float32 [B, *shape]; row i from keys[i] only."""
  return schedule.sigma(t) * rng.normal(keys, shape)


def call(denoise: guidance.Denoise, x: Array, t: Array) -> param.Prediction:
  """denoise(x [B, ...], t []) for the whole batch at one time."""
  return denoise(x, jnp.broadcast_to(t, x.shape[:1]))


def no_carry(x: Array) -> tuple[()]:
  """`init` of a sampler without carry."""
  del x
  return ()


def ddim(schedule: schedules.Schedule, eta: ranges.Fraction | Array = 0.0) -> Sampler:
  """Song et al. 2020 eq. 12 in (alpha, sigma) form, for any Gaussian schedule.

  eta = 0 is deterministic, eta = 1 is ancestral sampling.
  """

  def step(denoise, x, carry, t, s, keys):
    x0, eps = call(denoise, x, t)
    sigma_s = schedule.sigma(s)
    # Posterior variance of q(x_s | x_t, x0) over sigma_s^2, exact also for s close to
    # t; 0 when inverting (s > t).
    fresh = jnp.maximum(-jnp.expm1(schedule.logsnr(t) - schedule.logsnr(s)), 0.0)
    std = eta * sigma_s * jnp.sqrt(fresh)
    kept = jnp.sqrt(jnp.maximum(sigma_s**2 - std**2, 0.0))
    x = schedule.alpha(s) * x0 + kept * eps
    return x + std * rng.normal(keys, x.shape[1:]), carry

  return Sampler(no_carry, step)


def ddpm(schedule: schedules.Schedule) -> Sampler:
  """Ancestral sampling by the posterior's mean and variance, Ho et al. 2020 eq. 6-7."""

  def step(denoise, x, carry, t, s, keys):
    x0, _ = call(denoise, x, t)
    alpha_s, sigma_s = schedule.alpha(s), schedule.sigma(s)
    alpha_ts, sigma_t = schedule.alpha(t) / alpha_s, schedule.sigma(t)
    variance_ts = jnp.maximum(sigma_t**2 - (alpha_ts * sigma_s) ** 2, 0.0)
    mean = (alpha_ts * sigma_s**2 * x + alpha_s * variance_ts * x0) / sigma_t**2
    std = jnp.sqrt(variance_ts) * sigma_s / sigma_t
    return mean + std * rng.normal(keys, x.shape[1:]), carry

  return Sampler(no_carry, step)


def euler(schedule: schedules.Schedule) -> Sampler:
  """Euler's method on d(x/alpha) = eps d(sigma/alpha), Karras et al. 2022: `ddim`.

  They are equal as x = alpha x0 + sigma eps; this form is defined at alpha = 0.
  """
  return ddim(schedule)


def by_alpha(alpha: Array, sigma: Array) -> Array:
  """c = alpha: the coordinates of Karras et al. 2022, (x / alpha, sigma / alpha)."""
  del sigma
  return alpha


def by_sum(alpha: Array, sigma: Array) -> Array:
  """c = alpha + sigma: the coordinates of rectified flow, finite also at alpha = 0."""
  return alpha + sigma


def heun(
  schedule: schedules.Schedule, scale: Callable[[Array, Array], Array] = by_alpha
) -> Sampler:
  """Trapezoidal rule in coordinates x / scale(alpha, sigma). Karras et al. 2022 alg. 1.

  Two evaluations a step; one on the step to t = 0, where the end's slope is undefined,
  and on a step from c = 0, where the coordinates are undefined.
  """

  def weights(t):
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    c = scale(alpha, sigma)
    return c, alpha / c, sigma / c

  def step(denoise, x, carry, t, s, keys):
    del keys
    near = call(denoise, x, t)
    guess = schedule.alpha(s) * near.x0 + schedule.sigma(s) * near.eps
    (c_t, w0_t, w1_t), (c_s, w0_s, w1_s) = weights(t), weights(s)

    def correct():
      far = call(denoise, guess, s)
      x0, eps = jax.tree.map(lambda a, b: 0.5 * (a + b), near, far)
      return c_s * (x / c_t + (w0_s - w0_t) * x0 + (w1_s - w1_t) * eps)

    is_inside = (schedule.sigma(s) > 0) & (c_t > 0)
    return jax.lax.cond(is_inside, correct, lambda: guess), carry

  return Sampler(no_carry, step)


def euler_ancestral(
  schedule: schedules.Schedule, eta: ranges.Fraction | Array = 1.0
) -> Sampler:
  """`ddim`: Euler to below the noise level of s, then fresh noise up to it.

  The two are the same in (x / alpha, sigma / alpha); eta is 1 by default.
  """
  return ddim(schedule, eta)


# Relative increase of the noise level: S_churn / N.
Churn = Annotated[float, ranges.Range(0.0, 2**0.5 - 1)]


def churn(
  schedule: schedules.Schedule,
  sampler: Callable[[schedules.Schedule], Sampler] = heun,
  gamma: Churn | Array = 0.1,
  t_min: ranges.Fraction | Array = 0.05,
  t_max: ranges.Fraction | Array = 0.98,
) -> Sampler:
  """`sampler` with noise added before each step: sigma / alpha grows by 1 + gamma.

  gamma is the paper's S_churn / N, at most sqrt(2) - 1, and 0 outside [t_min, t_max].
  Source: Karras et al. 2022 alg. 2, for any schedule.
  """
  inner = sampler(schedule)

  def step(denoise, x, carry, t, s, keys):
    gain = jnp.where((t >= t_min) & (t <= t_max), gamma, 0.0)
    far = schedule.t_of(schedule.logsnr(t) - 2.0 * jnp.log1p(gain))
    far = jnp.where(gain > 0, jnp.clip(far, t, 1.0), t)
    scale = jnp.where(gain > 0, schedule.alpha(far) / schedule.alpha(t), 1.0)
    variance = schedule.sigma(far) ** 2 - (scale * schedule.sigma(t)) ** 2
    noise_keys = rng.fold_in(keys, 1)
    fresh = jnp.sqrt(jnp.maximum(variance, 0.0)) * rng.normal(noise_keys, x.shape[1:])
    return inner.step(denoise, scale * x + fresh, carry, far, s, keys)

  return Sampler(inner.init, step)


ALL = (ddpm, ddim, euler, euler_ancestral, heun, churn)
