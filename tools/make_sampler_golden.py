"""Writes tests/golden_samplers: what the schedulers of diffusers make of one network.

Runs in an environment of its own with torch and diffusers, which the tests do not need:

    python tools/make_sampler_golden.py tests/golden_samplers

The network is a fixed function of the variance-preserving state x [3, 4] and of lam =
log(alpha / sigma): out = tanh(x W + lam u + c), which stands for eps or for v. Every
scheduler runs on Stable Diffusion's betas. golden.npz holds, by case,

    NAME/ratios  float64 [n + 1], sigma / alpha of the grid, inf where no data is left
    NAME/states  float32 [n + 1, 3, 4], variance preserving, the start included
    NAME/noise   float32 [n, 3, 4], what was given to a scheduler that draws noise

and W, u, c; `alphas`, sqrt of the cumulative product of the rescaled betas. places.json
holds where each configuration steps (`places`).
"""

import itertools
import json
import pathlib
import sys
import unittest.mock

import diffusers
import numpy as np
import torch

SEED = 11
BETAS = dict(
  beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
)
SOLVER = {k: v for k, v in BETAS.items() if k != "clip_sample"}
LEADING = dict(timestep_spacing="leading", steps_offset=1)
TRAILING = dict(timestep_spacing="trailing")
ZERO = dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", **TRAILING)
POLYNOMIAL = dict(use_karras_sigmas=True)
EXPONENTIAL = dict(use_exponential_sigmas=True)

rng = np.random.default_rng(SEED)
W = rng.normal(size=(4, 4)) * 0.6
U, C = rng.normal(size=(2, 4)) * 0.3
START = rng.normal(size=(3, 4)).astype(np.float32)


def network(x, ratio):
  """float32 of x [3, 4] at sigma / alpha."""
  lam = -np.log(ratio) if np.isfinite(ratio) else -10.0
  return torch.from_numpy(np.tanh(x.numpy() @ W + lam * U + C).astype(np.float32))


def to_vp(ratio):
  """alpha, by which a state in the coordinates of Karras et al. is multiplied."""
  return (1.0 + ratio**2) ** -0.5


def by_timestep(scheduler, num_steps, **step):
  """DDIM, DDPM, PLMS: the state is variance preserving, levels are nodes."""
  scheduler.set_timesteps(num_steps)
  bar = scheduler.alphas_cumprod.double().numpy()
  gap = 1000 // num_steps

  def ratio_at(node):
    alpha_bar = bar[node] if node >= 0 else 1.0
    return float(np.sqrt((1.0 - alpha_bar) / alpha_bar)) if alpha_bar > 0 else np.inf

  timesteps = scheduler.timesteps.tolist()
  is_plms = isinstance(scheduler, diffusers.PNDMScheduler)
  x, states, noises = torch.from_numpy(START), [START], []
  for i, node in enumerate(timesteps):
    noise = torch.from_numpy(rng.normal(size=START.shape).astype(np.float32))
    with unittest.mock.patch(
      "diffusers.schedulers.scheduling_ddpm.randn_tensor", return_value=noise
    ):
      given = {"variance_noise": noise, **step} if "eta" in step else step
      x = scheduler.step(network(x, ratio_at(node)), node, x, **given).prev_sample
    if not (is_plms and i == 0):  # its first step is made twice
      states.append(x.numpy())
      noises.append(noise.numpy())
  nodes = list(dict.fromkeys(timesteps))
  ratios = [*map(ratio_at, nodes), ratio_at(nodes[-1] - gap)]
  return ratios, states, noises


def by_sigma(scheduler, num_steps, scaled, draws=False):
  """Levels are the scheduler's own sigmas; `scaled`: so is the state, by 1 / alpha."""
  scheduler.set_timesteps(num_steps)
  sigmas = scheduler.sigmas.double().numpy()
  x = torch.from_numpy(START) / (to_vp(sigmas[0]) if scaled else 1.0)
  x, states, noises, ratios = x.float(), [START], [], [sigmas[0]]
  for i, timestep in enumerate(scheduler.timesteps):
    noise = torch.from_numpy(rng.normal(size=START.shape).astype(np.float32))
    seen = x * to_vp(sigmas[i]) if scaled else x
    out = network(seen.float(), sigmas[i])
    if draws and scaled:
      with unittest.mock.patch(
        "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor",
        return_value=noise,
      ):
        x = scheduler.step(out, timestep, x).prev_sample
    elif draws:
      x = scheduler.step(out, timestep, x, variance_noise=noise).prev_sample
    else:
      x = scheduler.step(out, timestep, x).prev_sample
    vp = (x * to_vp(sigmas[i + 1]) if scaled else x).float().numpy()
    if sigmas[i + 1] > 0 and not getattr(scheduler, "state_in_first_order", True):
      continue  # between the two evaluations of one of Heun's steps
    states.append(vp)
    noises.append(noise.numpy())
    ratios.append(sigmas[i + 1])
  return ratios, states, noises


def singlestep(num_steps):
  """2S, where the grid's odd levels are the middles of its steps in log-SNR."""
  scheduler = diffusers.DPMSolverSinglestepScheduler(
    **SOLVER, **EXPONENTIAL, solver_order=2, final_sigmas_type="zero"
  )
  ratios, states, noises = by_sigma(scheduler, num_steps, False)
  whole = [*range(0, num_steps, 2), num_steps]
  return [ratios[i] for i in whole], [states[i] for i in whole], noises


def multistep(**config):
  return diffusers.DPMSolverMultistepScheduler(
    **SOLVER, solver_type="midpoint", final_sigmas_type="zero", **config
  )


def places(folder: pathlib.Path) -> None:
  """Writes places.json: sigma / alpha of every level that a configuration steps on.

  A list of {config, num_steps, levels}, over classes, spacings and kinds of levels.
  """
  nodes = ("DDIMScheduler", "PNDMScheduler", "DDPMScheduler")
  solvers = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
  leveled = ("EulerDiscreteScheduler", "HeunDiscreteScheduler", *solvers)
  found = []
  for name, spacing, offset, ends, levels, num in itertools.product(
    (*nodes, "EulerAncestralDiscreteScheduler", *leveled),
    ("leading", "trailing", "linspace"),
    (0, 1),
    ({}, {"set_alpha_to_one": True}, {"set_alpha_to_one": False}),
    ({}, POLYNOMIAL, EXPONENTIAL),
    (7, 30),
  ):
    if (bool(ends) != (name in nodes[:2])) or (levels and name not in leveled):
      continue
    if (offset == 0) != (spacing != "leading"):
      continue
    own = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    config = {**SOLVER, "timestep_spacing": spacing, "steps_offset": offset}
    config |= {**ends, **levels, **own}
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(num)
    if name in nodes:
      bar = scheduler.alphas_cumprod.double().numpy()
      at = [bar[t] for t in dict.fromkeys(scheduler.timesteps.tolist())]
      at.append(bar[0] if ends.get("set_alpha_to_one") is False else 1.0)
      ratios = [((1 - a) / a) ** 0.5 for a in at]
    else:  # Heun's inner levels stand twice
      ratios = list(dict.fromkeys(scheduler.sigmas.double().tolist()))
    row = {"config": {"_class_name": name, **config}, "num_steps": num}
    found.append({**row, "levels": [float(f"{r:.7g}") for r in ratios]})
  (folder / "places.json").write_text(json.dumps(found) + "\n")


def main(folder: pathlib.Path) -> None:
  def euler(**c):
    return diffusers.EulerDiscreteScheduler(**SOLVER, **c)

  def ddim(**c):
    return diffusers.DDIMScheduler(**{**BETAS, **c})

  cases = {
    "ddim": by_timestep(ddim(**LEADING), 20),
    "ddim_trailing": by_timestep(ddim(**TRAILING), 20),
    "ddim_eta": by_timestep(ddim(**LEADING), 20, eta=0.7),
    "ddim_zero_terminal": by_timestep(ddim(**ZERO), 20),
    "ddpm": by_timestep(diffusers.DDPMScheduler(**BETAS, **LEADING), 20),
    "plms": by_timestep(
      diffusers.PNDMScheduler(
        **SOLVER, **LEADING, skip_prk_steps=True, set_alpha_to_one=True
      ),
      20,
    ),
    "euler": by_sigma(euler(), 20, True),
    "euler_karras": by_sigma(euler(**POLYNOMIAL), 20, True),
    "euler_exponential": by_sigma(euler(**EXPONENTIAL), 20, True),
    "euler_ancestral": by_sigma(
      diffusers.EulerAncestralDiscreteScheduler(**SOLVER), 20, True, True
    ),
    "heun": by_sigma(diffusers.HeunDiscreteScheduler(**SOLVER), 20, True),
    "dpmpp_2m": by_sigma(multistep(solver_order=2), 20, False),
    "dpmpp_2m_karras": by_sigma(multistep(solver_order=2, **POLYNOMIAL), 20, False),
    "dpmpp_2m_sde": by_sigma(
      multistep(solver_order=2, algorithm_type="sde-dpmsolver++"), 20, False, True
    ),
    "dpmpp_3m": by_sigma(multistep(solver_order=3), 20, False),
    "dpmpp_2s": singlestep(21),
    "unipc": by_sigma(
      diffusers.UniPCMultistepScheduler(
        **SOLVER, solver_order=2, solver_type="bh2", final_sigmas_type="zero"
      ),
      20,
      False,
    ),
  }
  arrays = {"W": W, "u": U, "c": C}
  arrays["alphas"] = ddim(**ZERO).alphas_cumprod.double().sqrt().numpy()
  for name, (ratios, states, noises) in cases.items():
    arrays[f"{name}/ratios"] = np.asarray(ratios, np.float64)
    arrays[f"{name}/states"] = np.stack(states).astype(np.float32)
    if name in ("ddim_eta", "ddpm", "euler_ancestral", "dpmpp_2m_sde"):
      arrays[f"{name}/noise"] = np.stack(noises)
  folder.mkdir(parents=True, exist_ok=True)
  np.savez_compressed(folder / "golden.npz", **arrays)
  places(folder)
  provenance = {
    "made_by": "tools/make_sampler_golden.py",
    "seed": SEED,
    "torch": torch.__version__,
    "diffusers": diffusers.__version__,
  }
  (folder / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
