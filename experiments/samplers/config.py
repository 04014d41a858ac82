"""configs/diffusion/digits.py, drawn from with several samplers at the end."""

import ml_collections

from configs.diffusion import digits

EVALUATIONS = (5, 9, 19, 49, 99)
SAMPLERS = ("ddpm", "ddim", "dpmpp_2m", "unipc", "heun", "heun,grid=karras")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The argument is that of digits.py."""
  config = digits.get_config(arg)
  config.train.update({"health_check": False, "num_steps": 1500, "save_every": 1500})
  config.evaluators = {
    "validation": {"name": "loss", "every": 0},
    "fidelity": {"name": "fidelity", "every": 0, "features": "digits"},
    "samplers": {
      "name": "sampling_sweep",
      "every": 0,
      "settings": tuple(
        (f"sampler={name},evaluations={num}", _of(name, num))
        for name in SAMPLERS
        for num in EVALUATIONS
      ),
      "of": ("fidelity",),
    },
  }
  return config


def _of(label: str, evaluations: int) -> dict:
  """Heun evaluates twice a step, but once on the last one."""
  name, _, grid = label.partition(",grid=")
  num_steps = (evaluations + 1) // 2 if name == "heun" else evaluations
  grid = grid or "uniform"
  return {"sampler": {"name": name}, "grid": {"name": grid}, "num_steps": num_steps}
