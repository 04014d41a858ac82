"""Samplers and grids step for step with the schedulers of diffusers 0.42.

`tools/make_sampler_golden.py` ran them on Stable Diffusion's betas and a fixed network.
Their levels sigma / alpha are our times; node i of theirs is our t = (i + 1) / 1000.
What differs by design, and what makes it agree:

    leading     theirs ends at node 0 where `set_alpha_to_one` is off; ours at t = 0
    dpmpp_3m    theirs takes half of the parabola's bend: curve = 0.5
    dpmpp_2s    theirs takes the grid's odd levels for the middles of its steps, ours
                the middle in log-SNR: alike on an exponential grid twice as fine
    last step   first order where it goes to t = 0; theirs with final_sigmas_type zero
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import rng
from gen_jax.diffusion import grids, multistep, samplers
from gen_jax.diffusion import parameterisation as param
from gen_jax.diffusion import schedule as schedules

FOLDER = pathlib.Path(__file__).parents[1] / "golden_samplers"
GOLDEN = dict(np.load(FOLDER / "golden.npz"))
CHAIN = schedules.ScaledLinear()
ZERO = schedules.ZeroTerminal(CHAIN)

# Case -> sampler; `name_...` is the same sampler on another grid.
CASES = {
  "ddim": samplers.ddim,
  "ddim_trailing": samplers.ddim,
  "ddim_eta": functools.partial(samplers.ddim, eta=0.7),
  "ddim_zero_terminal": samplers.ddim,
  "ddpm": samplers.ddpm,
  "plms": multistep.plms,
  "euler": samplers.euler,
  "euler_karras": samplers.euler,
  "euler_exponential": samplers.euler,
  "euler_ancestral": samplers.euler_ancestral,
  "heun": samplers.heun,
  "dpmpp_2m": multistep.dpmpp_2m,
  "dpmpp_2m_karras": multistep.dpmpp_2m,
  "dpmpp_2m_sde": multistep.dpmpp_2m_sde,
  "dpmpp_2s": multistep.dpmpp_2s,
  "dpmpp_3m": functools.partial(multistep.dpmpp_3m, curve=0.5),
  "unipc": multistep.unipc,
}


def times_of(schedule, ratios) -> jnp.ndarray:
  """Our times of their levels sigma / alpha."""
  with np.errstate(divide="ignore"):
    return schedule.t_of(jnp.asarray(-2.0 * np.log(ratios), jnp.float32))


@pytest.mark.parametrize("name", CASES)
def test_step_for_step(name, monkeypatch):
  is_zero = name == "ddim_zero_terminal"
  schedule, target = (ZERO, param.V()) if is_zero else (CHAIN, param.Eps())
  states = GOLDEN[f"{name}/states"]
  times = times_of(schedule, GOLDEN[f"{name}/ratios"])
  w, u, c = (jnp.asarray(GOLDEN[k], jnp.float32) for k in "Wuc")
  noise = iter(GOLDEN.get(f"{name}/noise", np.zeros_like(states[1:])))

  def denoise(x, t):
    lam = jnp.maximum(0.5 * schedule.logsnr(t), -10.0)[:, None]
    return param.solve(
      target, schedule, t, x, jnp.tanh(x @ w + lam * u[None] + c[None])
    )

  monkeypatch.setattr(rng, "normal", lambda keys, shape: next(noise))
  sampler, x = CASES[name](schedule), jnp.asarray(states[0])
  keys = rng.per_example(jax.random.key(0), len(x))
  carry, step = sampler.init(x), sampler.step
  if f"{name}/noise" not in GOLDEN:
    monkeypatch.undo()
    step = jax.jit(step, static_argnums=0)
  for i, expected in enumerate(states[1:]):
    x, carry = step(denoise, x, carry, times[i], times[i + 1], keys)
    np.testing.assert_allclose(
      x, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize(
  ("name", "grid"),
  [
    ("ddim", grids.leading),
    ("ddim_trailing", grids.trailing),
    ("euler", grids.linspace),
    ("heun", grids.linspace),
    ("euler_ancestral", grids.linspace),
    ("dpmpp_2m", functools.partial(grids.linspace, spare=1, rounded=True)),
    ("unipc", functools.partial(grids.linspace, spare=1, rounded=True)),
    ("ddpm", grids.leading),
    ("plms", grids.leading),
    ("euler_karras", grids.karras),
    ("dpmpp_2m_karras", grids.karras),
    ("euler_exponential", grids.uniform_logsnr),
  ],
)
def test_grids(name, grid):
  """The same levels, with no argument but those that name the spacing."""
  ratios = GOLDEN[f"{name}/ratios"]
  got = jnp.exp(-0.5 * CHAIN.logsnr(grid(CHAIN, len(ratios) - 1)))
  np.testing.assert_allclose(got, ratios, rtol=2e-5)


def test_zero_terminal_betas():
  """All 1,000 nodes, the last one exactly 0."""
  times = jnp.arange(1, 1001) / 1000
  # theirs comes out of a float32 product of a thousand factors, ours has t to an ulp
  np.testing.assert_allclose(ZERO.alpha(times), GOLDEN["alphas"], rtol=2e-5, atol=6e-8)
  assert ZERO.alpha(jnp.float32(1.0)) == 0.0 == GOLDEN["alphas"][-1]
