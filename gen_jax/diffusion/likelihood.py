"""Exact log-density of a diffusion model, by its probability-flow ODE.

Let u = x_t / sqrt(alpha^2 + sigma^2) and tan(phi) = sigma / alpha. The flow maps data
(phi = 0) to noise (phi = pi / 2); its velocity is the v of Salimans & Ho 2022,

    du / dphi = v(u, phi) = cos(phi) eps - sin(phi) x0,

finite at both ends and the same for every schedule, and along it

    d log p(u) / dphi = - div v,        log p(data) = log N(u_1; 0, s_1^2) + int div v,

with s_1 = sigma / sqrt(alpha^2 + sigma^2) at the first time of every grid, where
samplers start. Integrated over tau = log tan(phi), minus half the log-SNR, from
`logsnr_max` down by the classical Runge-Kutta method of order 4.

A divergence is a function (v, u [B, ...], keys [B]) -> (v(u), div v [B]), by
vector-Jacobian products; layers with a custom_vjp support no JVP.

Sources: Song et al. 2021 (arXiv:2011.13456) eq. 39-40 and appendix D.2; Grathwohl et
al. 2018 (1810.01367) (one probe for the whole path).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen_jax import rng
from gen_jax.diffusion import grids, guidance, samplers
from gen_jax.diffusion import schedule as schedules
from gen_jax.types import Array, PyTree

Field = Callable[[Array], Array]
Divergence = Callable[[Field, Array, Array], tuple[Array, Array]]


def hutchinson(field: Field, u: Array, keys: Array) -> tuple[Array, Array]:
  """Unbiased estimate from one random sign vector per example, at two evaluations."""
  probe = jnp.where(rng.normal(keys, u.shape[1:]) < 0, -1.0, 1.0)
  out, pull = jax.vjp(field, u)
  return out, _sum(probe * pull(probe)[0])


def exact(field: Field, u: Array, keys: Array) -> tuple[Array, Array]:
  """The exact trace, one evaluation per dimension: for low-dimensional data."""
  del keys
  out, pull = jax.vjp(field, u)
  size = u[0].size
  basis = jnp.eye(size).reshape(size, 1, *u.shape[1:])

  def diagonal(e):
    return _sum(e * pull(jnp.broadcast_to(e, u.shape))[0])

  return out, jax.lax.map(diagonal, basis).sum(0)


def _sum(x: Array) -> Array:
  return x.sum(tuple(range(1, x.ndim)))


class Path(NamedTuple):
  """An integral in `num_steps` steps, so that a caller can stop or report in between.

  Attributes:
    start: the state at the data.
    step: (state, index int32 []) -> state, index from 0 to num_steps - 1.
    end: state -> log p(x) in nats, float32 [B].
  """

  num_steps: int
  start: PyTree
  step: Callable[[PyTree, Array], PyTree]
  end: Callable[[PyTree], Array]

  def integrate(self) -> Array:
    """Runs all steps in one compiled loop; returns `end` of the last state."""

    def step(index, state):
      return self.step(state, index)

    return self.end(jax.lax.fori_loop(0, self.num_steps, step, self.start))


def _runge_kutta(slope, at: Array, state: PyTree, width: Array) -> PyTree:
  """One step of the classical method of order 4 for dstate / dat = slope(at, state)."""

  def ahead(k, share):
    return jax.tree.map(lambda a, b: a + share * width * b, state, k)

  k1 = slope(at, state)
  k2 = slope(at + 0.5 * width, ahead(k1, 0.5))
  k3 = slope(at + 0.5 * width, ahead(k2, 0.5))
  k4 = slope(at + width, ahead(k3, 1.0))
  mean = jax.tree.map(lambda a, b, c, d: (a + 2.0 * (b + c) + d) / 6.0, k1, k2, k3, k4)
  return ahead(mean, 1.0)


def path(
  denoise: guidance.Denoise,
  schedule: schedules.Schedule,
  x: Array,
  keys: Array,
  num_steps: int = 64,
  logsnr_max: float = 16.0,
  divergence: Divergence = hutchinson,
) -> Path:
  """The integral from data to noise that gives log p(x), in nats.

  Args:
    x: float32 [B, ...], data.
    keys: [B], of the divergence's probes.
    num_steps: of four evaluations each.
    logsnr_max: log-SNR at which x is taken to lie: noise of std exp(-logsnr_max / 2);
      that of `schedule.t_first` if lower, because the model knows no less noise.
  """

  def weights(t):
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    norm = jnp.sqrt(alpha**2 + sigma**2)
    return norm, alpha / norm, sigma / norm

  def slope(tau, state):
    t = jnp.clip(schedule.t_of(-2.0 * tau), schedule.t_first, 1.0)
    norm, cos, sin = weights(t)

    def field(u):
      x0, eps = samplers.call(denoise, norm * u, t)
      return cos * sin * (cos * eps - sin * x0)  # dphi = cos sin dtau

    return divergence(field, state[0], keys)

  def step(state, index):
    return _runge_kutta(slope, first + width * index, state, width)

  def end(state):
    u, gained = state
    spread, size = weights(last_time)[2], u[0].size
    scale = shrunk / (spread * jnp.sqrt(2.0 * jnp.pi))
    return gained - 0.5 * _sum(u**2) / spread**2 + size * jnp.log(scale)

  last_time = grids.t_max(schedule)
  highest = jnp.minimum(logsnr_max, schedule.logsnr(jnp.float32(schedule.t_first)))
  first, last = -0.5 * highest, -0.5 * schedule.logsnr(last_time)
  width = (last - first) / num_steps
  # alpha / norm at the highest log-SNR: the mean of x_t / norm given x is `shrunk` x.
  shrunk = jax.nn.sigmoid(highest) ** 0.5
  return Path(num_steps, (shrunk * x, jnp.zeros(len(x))), step, end)
