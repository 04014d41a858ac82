"""Loss weights over noise levels.

The network is trained on w(t) |out - target|^2. Papers give their weights on the
error in x0 or in eps instead; since x_t is fixed, the three errors differ only by
factors of the 2x2 system (see `parameterisation`),

    |x0 error| = sigma / |det| |out error|      |eps error| = alpha / |det| |out error|

so one conversion serves every paper and every target. Where the output is x0 or eps
itself the factor is 1, also at sigma = 0 and alpha = 0.

A weighting is a function (schedule, target, t [B]) -> w [B], float32, >= 0.

Sources: Ho et al. 2020 (arXiv:2006.11239) eq. 14; Hang et al. 2023 (2303.09556);
Karras et al. 2022 (2206.00364) table 1; Hoogeboom et al. 2024 (2410.19324) section 3.1.
"""

import dataclasses

import jax
import jax.numpy as jnp

from gen_jax import ranges
from gen_jax.diffusion import parameterisation as param
from gen_jax.diffusion import schedule as schedules
from gen_jax.types import Array


def from_x0(schedule, target, t: Array, weight: float | Array) -> Array:
  """Converts a weight on |x0 error|^2 into one on |out error|^2."""
  a, b = target.coefficients(schedule, t)
  det = param.determinant(target, schedule, t)
  return weight * jnp.where(b == 0, 1.0 / a, schedule.sigma(t) / det) ** 2


def from_eps(schedule, target, t: Array, weight: float | Array) -> Array:
  """Converts a weight on |eps error|^2 into one on |out error|^2."""
  a, b = target.coefficients(schedule, t)
  det = param.determinant(target, schedule, t)
  return weight * jnp.where(a == 0, 1.0 / b, schedule.alpha(t) / det) ** 2


@dataclasses.dataclass(frozen=True)
class Unit:
  """1 on the network's output; for Eps this is DDPM's simple loss."""

  def __call__(self, schedule: schedules.Schedule, target, t: Array) -> Array:
    del schedule, target
    return jnp.ones_like(t)


@dataclasses.dataclass(frozen=True)
class MinSNR:
  """min(SNR, gamma) on x0. Hang et al. 2023.

  Computed as min(1 on eps, gamma on x0), which is finite at alpha = 0 and sigma = 0.

  >>> s, t = schedules.VPLinear(), jnp.array([0.5])
  >>> snr = jnp.exp(s.logsnr(t))
  >>> bool(jnp.allclose(MinSNR()(s, param.Eps(), t), jnp.minimum(snr, 5) / snr))
  True
  """

  gamma: ranges.Positive = 5.0

  def __post_init__(self) -> None:
    ranges.check(self)

  def __call__(self, schedule: schedules.Schedule, target, t: Array) -> Array:
    on_eps = from_eps(schedule, target, t, 1.0)
    return jnp.minimum(on_eps, from_x0(schedule, target, t, self.gamma))


@dataclasses.dataclass(frozen=True)
class EDMWeight:
  """(s^2 + d^2) / (s d)^2 on x0, s = sigma/alpha: 1 on EDM's own F.

  Source: Karras et al. 2022 table 1.
  """

  sigma_data: ranges.Positive = 0.5

  def __post_init__(self) -> None:
    ranges.check(self)

  def __call__(self, schedule: schedules.Schedule, target, t: Array) -> Array:
    # Numerator and denominator times alpha^2, so that alpha = 0 is regular.
    alpha, sigma, d = schedule.alpha(t), schedule.sigma(t), self.sigma_data
    weight = (sigma**2 + (alpha * d) ** 2) / (sigma * d) ** 2
    return from_x0(schedule, target, t, weight)


@dataclasses.dataclass(frozen=True)
class Sigmoid:
  """sigmoid(bias - logsnr) on eps. Hoogeboom et al. 2024 (there: bias b)."""

  bias: ranges.Finite = 0.0

  def __post_init__(self) -> None:
    ranges.check(self)

  def __call__(self, schedule: schedules.Schedule, target, t: Array) -> Array:
    weight = jax.nn.sigmoid(self.bias - schedule.logsnr(t))
    return from_eps(schedule, target, t, weight)
