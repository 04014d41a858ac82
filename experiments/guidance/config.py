"""configs/diffusion/digits.py, drawn from with many scales of guidance at the end."""

import ml_collections

from configs.diffusion import digits

SCALES = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 8.0)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The argument is that of digits.py."""
  config = digits.get_config(arg)
  config.train.update({"health_check": False, "save_every": 300})
  config.evaluators = {
    "validation": {"name": "loss", "every": 0},
    "reading": {"name": "prompt_accuracy", "every": 0, "num": 100},
    "fidelity": {"name": "fidelity", "every": 0, "features": "digits", "num": 300},
    "scales": {
      "name": "sampling_sweep",
      "every": 0,
      "settings": tuple(
        (f"guidance_scale={s:g}", {"guidance_scale": s}) for s in SCALES
      ),
      "of": ("fidelity", "reading"),
    },
  }
  config.sampling.num_steps = 10
  return config
