"""Time grids: where a sampler stops on its way from noise to data.

A grid is a function (schedule, num_steps) -> times float32 [num_steps + 1], strictly
falling, that ends at exactly 0. It starts at the noisiest time the schedule has, or
where log-SNR reaches LOGSNR_MIN if that comes first: beyond it x0 cannot be recovered
from eps in float32. Clamping lives here and nowhere in the formulas.

Sources: Song et al. 2020 (arXiv:2010.02502) (uniform); Karras et al. 2022 (2206.00364)
eq. 5; Lu et al. 2022 (2206.00927) section 3.3 (uniform log-SNR).
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
  """Equal steps in t, from the noisiest on: what is called trailing elsewhere.

  >>> uniform(schedules.VPLinear(), 4).tolist()
  [1.0, 0.75, 0.5, 0.25, 0.0]
  """
  return jnp.linspace(t_max(schedule), 0.0, num_steps + 1)


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

  sigma / alpha then falls exponentially.
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
