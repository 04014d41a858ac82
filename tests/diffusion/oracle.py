"""What the tests hold the code against: the papers' formulas in float64 numpy.

Nothing here calls the formula that it checks. A new schedule or target joins every
test of this package by one row of `CASES` or `TARGETS`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from gen_jax.diffusion import parameterisation as param
from gen_jax.diffusion import schedule as schedules

Function = Callable[[np.ndarray], np.ndarray]


class Case(NamedTuple):
  """A schedule, and its alpha and sigma as the source writes them."""

  schedule: schedules.Schedule
  alpha: Function
  sigma: Function

  def logsnr(self, t) -> np.ndarray:
    return 2.0 * np.log(self.alpha(t) / self.sigma(t))

  def slopes(self, t, h: float = 1e-5) -> tuple[np.ndarray, np.ndarray]:
    """d alpha / dt and d sigma / dt by central differences."""
    return tuple((f(t + h) - f(t - h)) / (2.0 * h) for f in (self.alpha, self.sigma))


def _vp(schedule, alpha_bar: Function) -> Case:
  """A variance-preserving schedule by alpha_bar = alpha^2."""
  return Case(
    schedule, lambda t: np.sqrt(alpha_bar(t)), lambda t: np.sqrt(1.0 - alpha_bar(t))
  )


def _chain(schedule, betas: np.ndarray) -> Case:
  """A chain of betas: Ho et al. 2020 eq. 4 at the nodes, log-linear between them."""
  bar = np.concatenate([[1.0], np.cumprod(1.0 - betas)])

  def alpha_bar(t):
    place = np.asarray(t, np.float64) * len(betas)
    i = np.clip(np.floor(place).astype(int), 0, len(betas) - 1)
    return bar[i] * (bar[i + 1] / bar[i]) ** (place - i)

  return _vp(schedule, alpha_bar)


def _shifted_vp(base: Case, factor: float) -> Case:
  """Hoogeboom et al. 2023 section 3.1: the SNR divided by factor^2, VP again."""

  def alpha_bar(t):
    signal, noise = base.alpha(t) ** 2, (factor * base.sigma(t)) ** 2
    return signal / (signal + noise)

  return _vp(schedules.Shift(base.schedule, factor), alpha_bar)


def _song(t, low=0.1, high=20.0):
  """Song et al. 2021: exp of minus the integral of beta, by the trapezium rule."""
  beta = [low, low + t * (high - low)]
  return np.exp(-0.5 * t * (beta[0] + beta[1]))


def _nichol(t, s=0.008):
  """Nichol & Dhariwal 2021 eq. 17."""
  f = np.cos((np.array([t, 0.0 * t]) + s) / (1.0 + s) * np.pi / 2.0) ** 2
  return f[0] / f[1]


def _karras(t, sigma_max=80.0, rho=7.0):
  """Karras et al. 2022 eq. 5 at i / (N - 1) = 1 - t, with sigma_min = 0."""
  high, low = sigma_max ** (1.0 / rho), 0.0
  return (high + (1.0 - t) * (low - high)) ** rho


def _esser(t, f=3.0):
  """Esser et al. 2024 eq. 23."""
  return f * t / (1.0 + (f - 1.0) * t)


def _lin(betas: np.ndarray) -> Case:
  """Lin et al. 2024 algorithm 1 at the nodes, alpha linear between them."""
  root = np.sqrt(np.cumprod(1.0 - betas))
  root = (root - root[-1]) * root[0] / (root[0] - root[-1])
  nodes, alphas = np.linspace(0.0, 1.0, len(betas) + 1), np.concatenate([[1.0], root])

  def alpha(t):
    return np.interp(t, nodes, alphas)

  schedule = schedules.ZeroTerminal(schedules.ScaledLinear())
  return Case(schedule, alpha, lambda t: np.sqrt(1.0 - alpha(t) ** 2))


_ZERO_TERMINAL = _lin(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
_COSINE = _vp(schedules.Cosine(), _nichol)
_SCALED_LINEAR = _chain(
  schedules.ScaledLinear(), np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
)
_CASES = {
  "vp_linear": _vp(schedules.VPLinear(), _song),
  "linear": _chain(schedules.Linear(), np.linspace(1e-4, 0.02, 1000)),
  "scaled_linear": _SCALED_LINEAR,
  "zero_terminal": _ZERO_TERMINAL,
  "cosine": _COSINE,
  "cosine_from_0": Case(
    schedules.Cosine(0.0),
    lambda t: np.cos(0.5 * np.pi * t),
    lambda t: np.sin(0.5 * np.pi * t),
  ),
  "karras": Case(schedules.Karras(), np.ones_like, _karras),
  "rectified_flow": Case(schedules.RectifiedFlow(), lambda t: 1.0 - t, lambda t: 1 * t),
  "shift_flow": Case(
    schedules.Shift(schedules.RectifiedFlow(), 3.0), lambda t: 1.0 - _esser(t), _esser
  ),
  "shift_cosine": _shifted_vp(_COSINE, 2.0),
  "shift_scaled_linear": _shifted_vp(_SCALED_LINEAR, 2.0),
  "shift_karras": Case(
    schedules.Shift(schedules.Karras(), 0.5), np.ones_like, lambda t: 0.5 * _karras(t)
  ),
}
CASES = [pytest.param(case, id=name) for name, case in _CASES.items()]
VP_CASES = [
  pytest.param(case, id=name)
  for name, case in _CASES.items()
  if "flow" not in name and "karras" not in name
]

# (alpha, sigma, alpha', sigma', sigma_data) -> (a, b, determinant), the design's table.
Row = Callable[..., tuple]


def _edm(alpha, sigma, dalpha, dsigma):
  """Karras et al. 2022: (x0 - c_skip x) / c_out with x = x0 + s eps and d = 0.5."""
  s, d = sigma / alpha, 0.5
  c_skip, c_out = d**2 / (s**2 + d**2), s * d / np.sqrt(s**2 + d**2)
  return (
    (1.0 - c_skip) / c_out,
    -c_skip * s / c_out,
    -np.sqrt(sigma**2 + (alpha * d) ** 2) / d,
  )


_TARGETS: dict[str, tuple[param.Target, Row]] = {
  "x0": (param.X0(), lambda a, s, da, ds: (1.0 + 0 * a, 0.0 * a, -s)),
  "eps": (param.Eps(), lambda a, s, da, ds: (0.0 * a, 1.0 + 0 * a, a)),
  "v": (param.V(), lambda a, s, da, ds: (-s, a, a**2 + s**2)),
  "velocity": (param.Velocity(), lambda a, s, da, ds: (da, ds, a * ds - s * da)),
  "score": (param.Score(), lambda a, s, da, ds: (0.0 * a, -1.0 / s, -a / s)),
  "edm": (param.EDM(), _edm),
}
TARGETS = {name: target for name, (target, _) in _TARGETS.items()}
TARGET_ROWS = [pytest.param(*row, id=name) for name, row in _TARGETS.items()]
TARGET_PARAMS = [pytest.param(target, id=name) for name, target in TARGETS.items()]

# Times strictly inside (0, 1) and between the nodes of a chain of 1,000. Tests share
# this shape wherever they can: a run is mostly XLA compiling small things.
TIMES = ((np.array([15, 60, 150, 300, 450, 600, 750, 900, 980]) + 0.5) / 1000).astype(
  np.float32
)


def wide(times) -> np.ndarray:
  """The same float32 times in float64, for the oracle."""
  return np.asarray(times, np.float32).astype(np.float64)
