"""Noise schedules: the coefficients of data and noise at time t.

A Gaussian diffusion is the family of marginals

    x_t = alpha(t) * x_0 + sigma(t) * eps,    eps ~ N(0, I),    t in [0, 1]

with t = 0 clean data (alpha = 1, sigma = 0) and t = 1 (almost) pure noise. The
log-SNR falls strictly with t; `t_of` is its inverse.

    symbol      meaning
    alpha(t)    data coefficient, 1 at t = 0, falling or constant
    sigma(t)    noise coefficient, 0 at t = 0, rising
    logsnr(t)   2 * log(alpha / sigma), +inf at t = 0
    t_of(l)     the time at which logsnr is l
    t_first     the lowest time that a model was trained on, 0 without such a bound

Variance-preserving (VP) schedules have alpha^2 + sigma^2 = 1 and are given by
log_alpha alone; `expm1` keeps sigma exact near t = 0, where 1 - alpha^2 would cancel.

Sources: Ho et al. 2020 (arXiv:2006.11239), Song et al. 2021 (2011.13456), Nichol &
Dhariwal 2021 (2102.09672), Kingma et al. 2021 (2107.00630), Karras et al. 2022
(2206.00364), Liu et al. 2022 (2209.03003), Hoogeboom et al. 2023 (2301.11093), Lin et
al. 2024 (2305.08891).
"""

import abc
import copy
import dataclasses
import functools
import math
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import numbers, ranges
from gen_jax.types import Array, InputError

Timesteps = Annotated[int, ranges.Range(2, 2**20)]


class Schedule(abc.ABC):
  """The contract: alpha, sigma, logsnr, t_of; float32, elementwise over t.

  Attributes:
    num_timesteps: nodes of a discrete chain, at t = i / num_timesteps; None without.
    t_known: the lowest time that a model was trained on, see `known`.
  """

  t_known = 0.0

  @property
  def num_timesteps(self) -> int | None:
    """See the class."""
    return None

  @property
  def t_first(self) -> float:
    """The lowest time a model was trained on: a chain's first node, or t_known."""
    return max(1.0 / self.num_timesteps if self.num_timesteps else 0.0, self.t_known)

  @abc.abstractmethod
  def alpha(self, t: Array) -> Array:
    """Data coefficient at t in [0, 1]."""

  @abc.abstractmethod
  def sigma(self, t: Array) -> Array:
    """Noise coefficient at t in [0, 1]."""

  @abc.abstractmethod
  def t_of(self, logsnr: Array) -> Array:
    """Inverse of `logsnr`."""

  def logsnr(self, t: Array) -> Array:
    """2 * log(alpha / sigma); +inf at t = 0."""
    return 2.0 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))


def known(schedule: Schedule, t_known: float) -> Schedule:
  """`schedule`, for a model that was trained on no time below t_known."""
  own = copy.copy(schedule)
  object.__setattr__(own, "t_known", t_known)
  return own


def derivatives(schedule: Schedule, t: Array) -> tuple[Array, Array]:
  """Returns (d alpha / dt, d sigma / dt) at t, elementwise.

  >>> [float(d) for d in derivatives(RectifiedFlow(), jnp.float32(0.3))]
  [-1.0, 1.0]
  """
  one = jnp.ones_like(t)
  return (
    jax.jvp(schedule.alpha, (t,), (one,))[1],
    jax.jvp(schedule.sigma, (t,), (one,))[1],
  )


def expand(coefficient: Array, x: Array) -> Array:
  """Gives coefficient [B] (or []) trailing axes so that it scales x [B, ...]."""
  return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))


class VariancePreserving(Schedule):
  """alpha^2 + sigma^2 = 1; a subclass gives log_alpha and its inverse."""

  @abc.abstractmethod
  def log_alpha(self, t: Array) -> Array:
    """log(alpha(t)), 0 at t = 0 and falling."""

  @abc.abstractmethod
  def t_of_log_alpha(self, log_alpha: Array) -> Array:
    """Inverse of `log_alpha`."""

  def alpha(self, t: Array) -> Array:
    return jnp.exp(self.log_alpha(t))

  def sigma(self, t: Array) -> Array:
    return jnp.sqrt(-jnp.expm1(2.0 * self.log_alpha(t)))

  def logsnr(self, t: Array) -> Array:
    log_alpha = self.log_alpha(t)
    return 2.0 * log_alpha - jnp.log(-jnp.expm1(2.0 * log_alpha))

  def t_of(self, logsnr: Array) -> Array:
    # alpha^2 = sigmoid(logsnr)  =>  log alpha = -softplus(-logsnr) / 2
    return self.t_of_log_alpha(-0.5 * jax.nn.softplus(-logsnr))


@dataclasses.dataclass(frozen=True)
class VPLinear(VariancePreserving):
  """Continuous-time linear beta(t) = beta_min + t (beta_max - beta_min).

  The limit of DDPM's 1,000 discrete steps. Source: Song et al. 2021 eq. 32-33.

  >>> VPLinear().alpha(jnp.float32(0.0)).item()
  1.0
  """

  beta_min: ranges.Positive = 0.1
  beta_max: ranges.Positive = 20.0

  def __post_init__(self) -> None:
    ranges.check_rising(self, "beta_min", "beta_max")

  def log_alpha(self, t: Array) -> Array:
    slope = self.beta_max - self.beta_min
    return -0.25 * slope * t**2 - 0.5 * self.beta_min * t

  def t_of_log_alpha(self, log_alpha: Array) -> Array:
    # The positive root of slope/4 t^2 + beta_min/2 t + log_alpha = 0, in the form
    # that does not cancel for small t.
    slope = self.beta_max - self.beta_min
    root = jnp.sqrt(self.beta_min**2 - 4.0 * slope * log_alpha)
    return -4.0 * log_alpha / (self.beta_min + root)


class _Chain(VariancePreserving):
  """A discrete-time chain of betas: exact at t = i / len(betas), log-linear between.

  Node 0 is clean data; node i is the product of the first i factors sqrt(1 - beta).
  Beyond t = 1 it continues with the last beta, since `Shift` evaluates there.
  """

  @abc.abstractmethod
  def betas(self) -> np.ndarray:
    """float64 [num_timesteps], the variances of the steps."""

  def __post_init__(self) -> None:
    ranges.check_rising(self, "beta_start", "beta_end")

  @functools.lru_cache  # noqa: B019 (a frozen dataclass hashes by its fields)
  def _log_alphas(self) -> np.ndarray:
    return np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-self.betas()))])

  def _nodes(self) -> tuple[Array, Array]:
    table = jnp.asarray(self._log_alphas(), jnp.float32)
    return jnp.linspace(0.0, 1.0, table.shape[0]), table

  def log_alpha(self, t: Array) -> Array:
    times, table = self._nodes()
    return jnp.interp(t, times, table, right="extrapolate")

  def t_of_log_alpha(self, log_alpha: Array) -> Array:
    times, table = self._nodes()
    return jnp.interp(-log_alpha, -table, times, right="extrapolate")


@dataclasses.dataclass(frozen=True)
class Linear(_Chain):
  """DDPM's chain: beta rises linearly over num_timesteps. Ho et al. 2020 section 4."""

  num_timesteps: Timesteps = 1000
  beta_start: ranges.OpenFraction = 1e-4
  beta_end: ranges.OpenFraction = 0.02

  def betas(self) -> np.ndarray:
    return np.linspace(self.beta_start, self.beta_end, self.num_timesteps)


@dataclasses.dataclass(frozen=True)
class ScaledLinear(_Chain):
  """Stable Diffusion's chain: sqrt(beta) rises linearly. Rombach et al. 2022."""

  num_timesteps: Timesteps = 1000
  beta_start: ranges.OpenFraction = 0.00085
  beta_end: ranges.OpenFraction = 0.012

  def betas(self) -> np.ndarray:
    first, last = np.sqrt([self.beta_start, self.beta_end])
    return np.linspace(first, last, self.num_timesteps) ** 2


@dataclasses.dataclass(frozen=True)
class ZeroTerminal(VariancePreserving):
  """A chain rescaled to a last alpha of 0; the first alpha is kept.

  x_1 is then pure noise, as at the start of sampling; sampling from t = 1 needs a
  target that is defined there (x0, v, velocity, EDM). Between nodes alpha is linear.
  Source: Lin et al. 2024 (arXiv:2305.08891) algorithm 1.

  >>> ZeroTerminal(ScaledLinear()).alpha(jnp.float32(1.0)).item()
  0.0
  """

  schedule: Linear | ScaledLinear

  def __post_init__(self):
    if not isinstance(self.schedule, _Chain):
      raise InputError(
        f"zero_terminal rescales betas, and {type(self.schedule).__name__} has none;"
        " take linear or scaled_linear"
      )

  @property
  def num_timesteps(self) -> int:
    return self.schedule.num_timesteps

  def _nodes(self) -> tuple[Array, Array, Array]:
    """Times, alpha and 1 - alpha there: exact at the ends, without cancellation."""
    alphas = np.exp(self.schedule._log_alphas())
    first, last = alphas[1], alphas[-1]
    alphas[1:] = (alphas[1:] - last) * first / (first - last)
    as_array = functools.partial(jnp.asarray, dtype=jnp.float32)
    times = np.linspace(0.0, 1.0, len(alphas))
    return as_array(times), as_array(alphas), as_array(1.0 - alphas)

  def _lost(self, t: Array) -> Array:
    times, _, lost = self._nodes()
    return jnp.interp(t, times, lost)

  def alpha(self, t: Array) -> Array:
    times, alphas, _ = self._nodes()
    return jnp.interp(t, times, alphas)

  def sigma(self, t: Array) -> Array:
    lost = self._lost(t)
    return jnp.sqrt(lost * (2.0 - lost))

  def log_alpha(self, t: Array) -> Array:
    lost = self._lost(t)
    return jnp.where(lost < 0.5, jnp.log1p(-lost), jnp.log(self.alpha(t)))

  def t_of_log_alpha(self, log_alpha: Array) -> Array:
    times, _, lost = self._nodes()
    return jnp.interp(-jnp.expm1(log_alpha), lost, times)


@dataclasses.dataclass(frozen=True)
class Cosine(VariancePreserving):
  """alpha(t) = cos(u(t)) / cos(u(0)), u = pi/2 (t + s) / (1 + s).

  Source: Nichol & Dhariwal 2021 eq. 17, in continuous time. alpha(1) is 1e-10, not 0,
  so that logsnr stays finite.
  """

  offset: ranges.ProperFraction = 0.008

  def __post_init__(self) -> None:
    ranges.check(self)

  @property
  def _start(self) -> float:
    return 0.5 * math.pi * self.offset / (1.0 + self.offset)  # u(0)

  def log_alpha(self, t: Array) -> Array:
    # alpha by its form at t = 1, 1 - alpha^2 by that at t = 0: neither cancels.
    start, span = self._start, 0.5 * math.pi - self._start
    alpha = jnp.sin(span * (1.0 - t)) / np.cos(start)
    variance = jnp.sin(span * t) * jnp.sin(span * t + 2.0 * start) / np.cos(start) ** 2
    return jnp.where(
      variance < 0.5,
      0.5 * jnp.log1p(-jnp.minimum(variance, 0.5)),
      jnp.log(jnp.maximum(alpha, 1e-10)),
    )

  def t_of_log_alpha(self, log_alpha: Array) -> Array:
    # u - u(0) from its sine and cosine: arccos(alpha cos u(0)) would cancel near 0.
    sin_0, cos_0 = np.sin(self._start), np.cos(self._start)
    cos = jnp.exp(log_alpha) * cos_0
    above = -jnp.expm1(2.0 * log_alpha) * cos_0**2  # sin(u)^2 - sin(u(0))^2
    sin = jnp.sqrt(sin_0**2 + above)
    sin_sum = jnp.maximum(sin * cos_0 + cos * sin_0, 1e-30)
    angle = jnp.arctan2(above / sin_sum, cos * cos_0 + sin * sin_0)
    return angle / (0.5 * math.pi - self._start)


@dataclasses.dataclass(frozen=True)
class Karras(Schedule):
  """Variance exploding: alpha = 1, sigma = sigma_max * t^rho.

  Uniform steps in t are Karras et al. 2022 eq. 5 with sigma_min = 0, so that t = 0 is
  clean data as in every schedule; the grid decides where to stop.
  """

  sigma_max: ranges.Positive = 80.0
  rho: ranges.Positive = 7.0

  def __post_init__(self) -> None:
    ranges.check(self)

  def alpha(self, t: Array) -> Array:
    return jnp.ones_like(t)

  def sigma(self, t: Array) -> Array:
    return self.sigma_max * t**self.rho

  def t_of(self, logsnr: Array) -> Array:
    return (jnp.exp(-0.5 * logsnr) / self.sigma_max) ** (1.0 / self.rho)


@dataclasses.dataclass(frozen=True)
class RectifiedFlow(Schedule):
  """Straight lines: alpha = 1 - t, sigma = t. Liu et al. 2022; Lipman et al. 2022."""

  def alpha(self, t: Array) -> Array:
    return 1.0 - t

  def sigma(self, t: Array) -> Array:
    return t

  def t_of(self, logsnr: Array) -> Array:
    return jax.nn.sigmoid(-0.5 * logsnr)


@dataclasses.dataclass(frozen=True)
class Shift(Schedule):
  """`schedule` with its log-SNR lowered by 2 log(factor).

  Average-pooling an image of `factor` times the side divides its noise by `factor`;
  the shift restores it. Source: Hoogeboom et al. 2023 section 3.1; on RectifiedFlow it
  is t' = f t / (1 + (f - 1) t) (Esser et al. 2024 eq. 23).

  >>> round(Shift(RectifiedFlow(), 3.0).sigma(jnp.float32(0.5)).item(), 6)
  0.75
  """

  schedule: Schedule
  factor: ranges.Positive

  def __post_init__(self) -> None:
    ranges.check(self)

  @property
  def t_first(self) -> float:
    """The larger of both schedules' lowest trained times."""
    inner = self.schedule.t_first
    with numbers.constant(), jax.ensure_compile_time_eval():
      outer = float(self.t_of(self.schedule.logsnr(jnp.float32(inner))))
    return max(inner, outer, self.t_known)

  def _inner_time(self, t: Array) -> Array:
    return self.schedule.t_of(self.schedule.logsnr(t) - 2.0 * jnp.log(self.factor))

  def alpha(self, t: Array) -> Array:
    return self.schedule.alpha(self._inner_time(t))

  def sigma(self, t: Array) -> Array:
    return self.schedule.sigma(self._inner_time(t))

  def logsnr(self, t: Array) -> Array:
    return self.schedule.logsnr(t) - 2.0 * jnp.log(self.factor)

  def t_of(self, logsnr: Array) -> Array:
    return self.schedule.t_of(logsnr + 2.0 * jnp.log(self.factor))
