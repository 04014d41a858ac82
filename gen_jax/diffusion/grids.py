"""Time grids: where a sampler stops on its way from noise to data.

A grid is a function (schedule, num_steps) -> times float32 [num_steps + 1], strictly
falling, that ends at exactly 0. It starts at the noisiest time the schedule has, or
where log-SNR reaches LOGSNR_MIN if that comes first: beyond it x0 cannot be recovered
from eps in float32. Clamping lives here and nowhere in the formulas. `trailing` alone
begins at t = 1 whatever is left there: for zero-terminal SNR, and targets that bear it.

Sources: Song et al. 2020 (arXiv:2010.02502) (uniform); Lin et al. 2024 (2305.08891)
table 2 (trailing, leading); Karras et al. 2022 (2206.00364) eq. 5; Lu et al. 2022
(2206.00927) section 3.3 (uniform log-SNR).
"""

import jax.numpy as jnp

from gen_jax.diffusion import schedule as schedules
from gen_jax.types import Array

LOGSNR_MIN = -12.0


def t_max(schedule: schedules.Schedule) -> Array:
  """The first time of every grid, float32 []."""
  one = jnp.float32(1.0)
  noisiest = schedule.logsnr(one)
  return jnp.where(noisiest < LOGSNR_MIN, schedule.t_of(jnp.float32(LOGSNR_MIN)), one)


def uniform(schedule: schedules.Schedule, num_steps: int) -> Array:
  """Equal steps in t, from the noisiest on.

  >>> uniform(schedules.VPLinear(), 4).tolist()
  [1.0, 0.75, 0.5, 0.25, 0.0]
  """
  return jnp.linspace(t_max(schedule), 0.0, num_steps + 1)


def trailing(schedule: schedules.Schedule, num_steps: int) -> Array:
  """Equal steps in t from 1 on, where a network that predicts eps may say nothing."""
  del schedule
  return jnp.linspace(1.0, 0.0, num_steps + 1)


def leading(
  schedule: schedules.Schedule, num_steps: int, first: float = 0.002
) -> Array:
  """Equal steps in t of 1 / num_steps down to `first`, and from there to 0.

  It never asks about the noisiest times, which is how Stable Diffusion 1 and 2 were
  released to be sampled: `first` is the second node of their chain of 1,000.

  >>> leading(schedules.VPLinear(), 4, 0.125).tolist()
  [0.875, 0.625, 0.375, 0.125, 0.0]
  """
  del schedule
  last = min(first + 1.0 - 1.0 / num_steps, 1.0)
  return jnp.append(jnp.linspace(last, first, num_steps), 0.0)


def _down_to(schedule: schedules.Schedule, logsnrs: Array) -> Array:
  times = schedule.t_of(logsnrs)
  return jnp.concatenate([times, jnp.zeros(1)])


def karras(
  schedule: schedules.Schedule,
  num_steps: int,
  sigma_min: float = 0.002,
  sigma_max: float = 80.0,
  rho: float = 7.0,
) -> Array:
  """num_steps noise levels sigma/alpha, equal steps in their rho-th root, then 0."""
  noisiest = jnp.exp(-0.5 * schedule.logsnr(t_max(schedule)))
  high = jnp.minimum(sigma_max, noisiest) ** (1.0 / rho)
  low = sigma_min ** (1.0 / rho)
  sigmas = jnp.linspace(high, low, num_steps) ** rho
  return _down_to(schedule, -2.0 * jnp.log(sigmas))


def uniform_logsnr(
  schedule: schedules.Schedule, num_steps: int, logsnr_max: float = 12.0
) -> Array:
  """num_steps levels equally spaced in log-SNR up to `logsnr_max`, then 0.

  sigma / alpha then falls exponentially, which is its other name.
  """
  low = schedule.logsnr(t_max(schedule))
  return _down_to(schedule, jnp.linspace(low, logsnr_max, num_steps))


# sigma / alpha of ten steps, optimised for Stable Diffusion 1.
_AYS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152)


def align_your_steps(schedule: schedules.Schedule, num_steps: int) -> Array:
  """The ten noise levels of Sabour et al. 2024, log-linear for other numbers; then 0.

  Source: arXiv:2404.14507 and the authors' published figures for Stable Diffusion 1.
  """
  places = jnp.linspace(0.0, len(_AYS) - 1.0, num_steps)
  logs = jnp.interp(places, jnp.arange(len(_AYS)), jnp.log(jnp.array(_AYS)))
  noisiest = -0.5 * schedule.logsnr(t_max(schedule))
  return _down_to(schedule, -2.0 * jnp.minimum(logs, noisiest))


ALL = (uniform, trailing, leading, karras, uniform_logsnr, align_your_steps)
