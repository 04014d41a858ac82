"""Time grids: the times at which a sampler evaluates, from noise to data.

A grid is a function (schedule, num_steps) -> times float32 [num_steps + 1], strictly
falling, that ends at exactly 0 (`to_first_node` alone does not). It starts at the
schedule's noisiest time, or where log-SNR is LOGSNR_MIN if that is lower: beyond it x0
cannot be recovered from eps in float32. Only grids clamp, formulas never do. Only
`trailing` and `linspace` start at t = 1 whatever the SNR: for zero-terminal SNR, with
targets that are defined there.
Times above 0 are at least `schedule.t_first`, the lowest that a model was trained on.

Sources: Song et al. 2020 (arXiv:2010.02502) (uniform); Lin et al. 2024 (2305.08891)
table 2 (trailing, leading); Karras et al. 2022 (2206.00364) eq. 5; Lu et al. 2022
(2206.00927) section 3.3 (uniform log-SNR).
"""

import math
from collections.abc import Callable

import jax.numpy as jnp

from gen_jax import ranges
from gen_jax.diffusion import schedule as schedules
from gen_jax.types import Array, InputError

LOGSNR_MIN = -12.0
Grid = Callable[[schedules.Schedule, int], Array]


def t_max(schedule: schedules.Schedule) -> Array:
  """The first time of every grid, float32 []."""
  one = jnp.float32(1.0)
  noisiest = schedule.logsnr(one)
  return jnp.where(noisiest < LOGSNR_MIN, schedule.t_of(jnp.float32(LOGSNR_MIN)), one)


def uniform(schedule: schedules.Schedule, num_steps: int) -> Array:
  """Equal steps in t from `t_max` to 0.

  >>> uniform(schedules.VPLinear(), 4).round(6).tolist()
  [1.0, 0.75, 0.5, 0.25, 0.0]
  """
  first = t_max(schedule)
  return _even(schedule, first, first / num_steps, num_steps)


def trailing(schedule: schedules.Schedule, num_steps: int) -> Array:
  """Equal steps in t from 1 (where x0 may not follow from eps), at a chain's nodes."""
  return _nodes(schedule, _even(schedule, 1.0, 1.0 / num_steps, num_steps))


def leading(
  schedule: schedules.Schedule,
  num_steps: int,
  first: ranges.PositiveFraction = 0.002,
  spare: ranges.Whole = 0,
) -> Array:
  """Equal steps in t of 1 / num_steps down to `first`, then 0.

  The noisiest times are never evaluated, as in the release of Stable Diffusion 1 and 2:
  `first` is the second node of their chain of 1,000. On a chain a step is a whole
  number of nodes.

  Args:
    spare: extra steps to divide by, dropped at the low end; 1 matches the multistep
      solvers of diffusers.

  >>> leading(schedules.VPLinear(), 4, 0.125).round(6).tolist()
  [0.875, 0.625, 0.375, 0.125, 0.0]
  """
  planned, nodes = num_steps + spare, schedule.num_timesteps
  step = nodes // planned / nodes if nodes and planned <= nodes else 1.0 / planned
  last = first + spare * step
  return _even(schedule, min(last + (num_steps - 1) * step, 1.0), last, num_steps)


def linspace(
  schedule: schedules.Schedule,
  num_steps: int,
  spare: ranges.Whole = 0,
  rounded: bool = False,
) -> Array:
  """Equal steps in t from 1 to `schedule.t_first`, then 0.

  Args:
    spare: see `leading`.
    rounded: round to a chain's nodes.
  """
  quietest = schedule.t_first or 0.001
  times = jnp.linspace(1.0, quietest, num_steps + spare)[:num_steps]
  times = jnp.append(times, 0.0)
  return _nodes(schedule, times) if rounded else times


def to_first_node(
  schedule: schedules.Schedule, num_steps: int, grid: Grid = leading
) -> Array:
  """`grid`, ending at a chain's first node instead of t = 0.

  The samples keep that node's noise, as in Stable Diffusion's own samplers.
  """
  return grid(schedule, num_steps).at[-1].set(schedule.t_first)


def _even(schedule: schedules.Schedule, first, last, num_steps: int) -> Array:
  """num_steps times from `first` down to `last`, each at least t_first; then 0."""
  first, last = (jnp.maximum(t, schedule.t_first) for t in (first, last))
  return jnp.append(jnp.linspace(first, last, num_steps), 0.0)


def _nodes(schedule: schedules.Schedule, times: Array) -> Array:
  """Times rounded to a chain's nodes, if it has enough of them."""
  num = schedule.num_timesteps
  if num is None or len(times) > num + 1:
    return times
  return jnp.round(times * num) / num


def _levels(
  schedule: schedules.Schedule, num_steps: int, grid: Grid | None = None
) -> tuple[Array, Array]:
  """sigma / alpha at a grid's first and last time above 0; None: at t_max, t_first."""
  if grid is None:
    ends = t_max(schedule), jnp.float32(schedule.t_first)
  else:
    times = grid(schedule, num_steps)
    ends = times[0], times[-2]
  noisiest, quietest = (jnp.exp(-0.5 * schedule.logsnr(t)) for t in ends)
  return noisiest, quietest


def _down_to(schedule: schedules.Schedule, logsnrs: Array) -> Array:
  """Times of these log-SNRs, clipped to [t_first, 1] against rounding; then 0."""
  times = jnp.clip(schedule.t_of(logsnrs), schedule.t_first, 1.0)
  return jnp.append(times, 0.0)


@ranges.checked
def karras(
  schedule: schedules.Schedule,
  num_steps: int,
  sigma_min: ranges.Positive = 0.002,
  sigma_max: ranges.Positive = 80.0,
  rho: ranges.Positive = 7.0,
  grid: Grid | None = None,
) -> Array:
  """num_steps noise levels sigma/alpha, equal steps in their rho-th root, then 0.

  Args:
    grid: another grid; levels stay within its range at as many steps.

  Raises:
    InputError: levels that do not rise from sigma_min, or a number out of its range.
  """
  if all(isinstance(x, int | float) for x in (sigma_min, sigma_max)):
    if sigma_min >= sigma_max:
      raise InputError(
        f"grid karras: sigma_min={sigma_min} must be below sigma_max={sigma_max}"
      )
  noisiest, quietest = _levels(schedule, num_steps, grid)
  high = jnp.minimum(sigma_max, noisiest) ** (1.0 / rho)
  low = jnp.maximum(sigma_min, quietest) ** (1.0 / rho)
  sigmas = jnp.linspace(high, low, num_steps) ** rho
  return _down_to(schedule, -2.0 * jnp.log(sigmas))


def uniform_logsnr(
  schedule: schedules.Schedule,
  num_steps: int,
  logsnr_max: ranges.Finite = 12.0,
  grid: Grid | None = None,
) -> Array:
  """num_steps levels equally spaced in log-SNR up to `logsnr_max`, then 0.

  Elsewhere called exponential: sigma / alpha falls so. `grid`: see `karras`.
  """
  low, high = (-2.0 * jnp.log(x) for x in _levels(schedule, num_steps, grid))
  high = jnp.minimum(logsnr_max, high)
  return _down_to(schedule, jnp.linspace(low, high, num_steps))


# sigma / alpha of ten steps, optimised for Stable Diffusion 1.
_AYS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152)


def align_your_steps(schedule: schedules.Schedule, num_steps: int) -> Array:
  """The ten noise levels of Sabour et al. 2024, log-linear for other numbers; then 0.

  Levels are compressed in log to the schedule's range where they exceed it.
  Source: arXiv:2404.14507 and the authors' published levels for Stable Diffusion 1.
  """
  places = jnp.linspace(0.0, len(_AYS) - 1.0, num_steps)
  logs = jnp.interp(places, jnp.arange(len(_AYS)), jnp.log(jnp.array(_AYS)))
  noisiest, quietest = (jnp.log(x) for x in _levels(schedule, num_steps))
  high, low = jnp.minimum(logs[0], noisiest), jnp.maximum(math.log(_AYS[-1]), quietest)
  share = (logs[0] - logs) / math.log(_AYS[0] / _AYS[-1])
  return _down_to(schedule, -2.0 * (high - share * (high - low)))


ALL = (
  *(uniform, trailing, leading, linspace, to_first_node),
  *(karras, uniform_logsnr, align_your_steps),
)
