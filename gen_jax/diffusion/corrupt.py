"""The forward process, and the distributions of training times.

A time sampler is a function (schedule, keys [B]) -> t [B]; entry i depends on keys[i]
(the stratified one also on keys[0], the shared offset).

Sources: Kingma et al. 2021 (arXiv:2107.00630) appendix I.1 (stratified); Esser et al.
2024 (2403.03206) eq. 19 (logit-normal); Karras et al. 2022 table 1 (log-normal sigma).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen_jax import ranges, rng
from gen_jax.diffusion import schedule as schedules
from gen_jax.types import Array

TimeSampler = Callable[[schedules.Schedule, Array], Array]


def corrupt(schedule: schedules.Schedule, t: Array, x0: Array, eps: Array) -> Array:
  """Returns x_t = alpha(t) x0 + sigma(t) eps; t [B], x0 and eps [B, ...].

  >>> x0, eps = jnp.array([[4.0]]), jnp.array([[8.0]])
  >>> corrupt(schedules.RectifiedFlow(), jnp.array([0.25]), x0, eps).tolist()
  [[5.0]]
  """
  alpha = schedules.expand(schedule.alpha(t), x0)
  sigma = schedules.expand(schedule.sigma(t), x0)
  return alpha * x0 + sigma * eps


@dataclasses.dataclass(frozen=True)
class UniformTime:
  """t ~ U(t_min, t_max)."""

  t_min: ranges.Fraction = 1e-3
  t_max: ranges.Fraction = 1.0

  def __post_init__(self) -> None:
    ranges.check_rising(self, "t_min", "t_max")

  def __call__(self, schedule: schedules.Schedule, keys: Array) -> Array:
    del schedule
    return self.t_min + (self.t_max - self.t_min) * rng.uniform(keys)


@dataclasses.dataclass(frozen=True)
class StratifiedTime:
  """One time per stratum of width 1/B, one shared offset: uniform, lower variance."""

  t_min: ranges.Fraction = 1e-3
  t_max: ranges.Fraction = 1.0

  def __post_init__(self) -> None:
    ranges.check_rising(self, "t_min", "t_max")

  def __call__(self, schedule: schedules.Schedule, keys: Array) -> Array:
    del schedule
    batch_size = keys.shape[0]
    offset = jax.random.uniform(keys[0])
    u = (offset + jnp.arange(batch_size) / batch_size) % 1.0
    return self.t_min + (self.t_max - self.t_min) * u


def by_example(sampler: TimeSampler) -> TimeSampler:
  """The same distribution, each time drawn from its own example's key.

  Evaluation must not depend on which examples share a batch.

  >>> by_example(StratifiedTime(0.1))
  UniformTime(t_min=0.1, t_max=1.0)
  """
  if isinstance(sampler, StratifiedTime):
    return UniformTime(sampler.t_min, sampler.t_max)
  return sampler


@dataclasses.dataclass(frozen=True)
class LogitNormalTime:
  """logit(t) ~ N(mean, std^2): most samples at middle times."""

  mean: ranges.Finite = 0.0
  std: ranges.NotNegative = 1.0

  def __post_init__(self) -> None:
    ranges.check(self)

  def __call__(self, schedule: schedules.Schedule, keys: Array) -> Array:
    del schedule
    return jax.nn.sigmoid(self.mean + self.std * rng.normal(keys, ()))


@dataclasses.dataclass(frozen=True)
class LogNormalSigma:
  """log(sigma/alpha) ~ N(mean, std^2), clipped to the schedule's noisiest level."""

  mean: ranges.Finite = -1.2
  std: ranges.NotNegative = 1.2

  def __post_init__(self) -> None:
    ranges.check(self)

  def __call__(self, schedule: schedules.Schedule, keys: Array) -> Array:
    log_sigma = self.mean + self.std * rng.normal(keys, ())
    return jnp.minimum(schedule.t_of(-2.0 * log_sigma), 1.0)
