"""Prediction targets: what the network predicts, and x_0 and eps from its output.

Every target of the field is linear in data and noise,

    out = a * x_0 + b * eps        and        x_t = alpha * x_0 + sigma * eps,

so one 2x2 solve turns any network output into both:

    det = alpha * b - sigma * a
    x_0 = (b * x_t - sigma * out) / det        eps = (alpha * out - a * x_t) / det

    target      a                      b                     det
    X0          1                      0                     -sigma
    Eps         0                      1                     alpha
    V           -sigma                 alpha                 alpha^2 + sigma^2
    Velocity    alpha'                 sigma'                alpha sigma' - sigma alpha'
    Score       0                      -1 / sigma            -alpha / sigma
    EDM         s / (d sqrt(s^2+d^2))  -d / sqrt(s^2+d^2)    with s = sigma / alpha

Sources: Ho et al. 2020; Salimans & Ho 2022 (arXiv:2202.00512); Lipman et al. 2022
(2210.02747); Karras et al. 2022 (2206.00364) table 1.
"""

import abc
import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from gen_jax import ranges
from gen_jax.diffusion import schedule as schedules
from gen_jax.types import Array

_TINY = 1e-20


class Prediction(NamedTuple):
  """The two unknowns of x_t = alpha x0 + sigma eps; each has the shape of x_t."""

  x0: Array
  eps: Array


@dataclasses.dataclass(frozen=True)
class Target(abc.ABC):
  """A prediction target; subclasses give `coefficients`."""

  @abc.abstractmethod
  def coefficients(self, schedule: schedules.Schedule, t: Array) -> tuple[Array, Array]:
    """Returns (a, b) of out = a x0 + b eps, elementwise over t."""

  def input_scale(self, schedule: schedules.Schedule, t: Array) -> Array:
    """Factor on x_t before it enters the network, elementwise over t."""
    del schedule
    return jnp.ones_like(t)


class X0(Target):
  """The data itself."""

  def coefficients(self, schedule, t):
    return jnp.ones_like(t), jnp.zeros_like(t)


class Eps(Target):
  """The noise. Ho et al. 2020."""

  def coefficients(self, schedule, t):
    return jnp.zeros_like(t), jnp.ones_like(t)


class V(Target):
  """alpha eps - sigma x0. Salimans & Ho 2022 appendix D."""

  def coefficients(self, schedule, t):
    return -schedule.sigma(t), schedule.alpha(t)


class Velocity(Target):
  """dx_t/dt at fixed (x0, eps), the flow-matching target. Lipman et al. 2022."""

  def coefficients(self, schedule, t):
    return schedules.derivatives(schedule, t)


class Score(Target):
  """grad log p(x_t | x0) = -eps / sigma. Song et al. 2021."""

  def coefficients(self, schedule, t):
    return jnp.zeros_like(t), -1.0 / jnp.maximum(schedule.sigma(t), _TINY)


@dataclasses.dataclass(frozen=True)
class EDM(Target):
  """The preconditioned F of Karras et al. 2022, table 1 (any schedule, by x_t/alpha).

  Input and target have unit variance at every noise level if the data has standard
  deviation `sigma_data`.
  """

  sigma_data: ranges.Positive = 0.5

  def __post_init__(self) -> None:
    ranges.check(self)

  def coefficients(self, schedule, t):
    # Numerator and denominator times alpha, so that alpha = 0 is regular.
    sigma, d = schedule.sigma(t), self.sigma_data
    alpha_d = schedule.alpha(t) * d
    norm = jnp.sqrt(sigma**2 + alpha_d**2)
    return sigma / (d * norm), -alpha_d / norm

  def input_scale(self, schedule, t):
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return 1.0 / jnp.sqrt((alpha * self.sigma_data) ** 2 + sigma**2)


def combine(
  target: Target, schedule: schedules.Schedule, t: Array, x0: Array, eps: Array
) -> Array:
  """Returns the regression target a x0 + b eps, shaped as x0 [B, ...]; t [B]."""
  a, b = (schedules.expand(c, x0) for c in target.coefficients(schedule, t))
  return a * x0 + b * eps


def determinant(target: Target, schedule: schedules.Schedule, t: Array) -> Array:
  """alpha b - sigma a, elementwise over t."""
  a, b = target.coefficients(schedule, t)
  return schedule.alpha(t) * b - schedule.sigma(t) * a


def solve(
  target: Target, schedule: schedules.Schedule, t: Array, x_t: Array, out: Array
) -> Prediction:
  """Returns (x0, eps) from the network output `out`.

  Exact wherever the system is regular. Where b = 0 the output is a x0, where a = 0 it
  is b eps: these are divided directly, also at sigma = 0.

  Args:
    t: float32 [B] or [], times in [0, 1].
    x_t: float32 [B, ...], the noisy input.
    out: float32 [B, ...], the network's output.

  >>> t, x = jnp.array([0.5]), jnp.array([[2.0]])
  >>> solve(X0(), schedules.RectifiedFlow(), t, x, jnp.array([[1.0]])).eps.tolist()
  [[3.0]]
  """
  a, b = (schedules.expand(c, x_t) for c in target.coefficients(schedule, t))
  alpha = schedules.expand(schedule.alpha(t), x_t)
  sigma = schedules.expand(schedule.sigma(t), x_t)
  det = alpha * b - sigma * a
  det = jnp.where(jnp.abs(det) < _TINY, _TINY, det)
  x0 = (b * x_t - sigma * out) / det
  eps = (alpha * out - a * x_t) / det
  is_data, is_noise = b == 0, a == 0
  return Prediction(
    jnp.where(is_data, out / jnp.where(is_data, a, 1.0), x0),
    jnp.where(is_noise, out / jnp.where(is_noise, b, 1.0), eps),
  )
