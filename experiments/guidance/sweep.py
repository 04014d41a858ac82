"""What does guidance give, and what does it take?

Ho & Salimans 2022 (arXiv:2207.12598), figure 4: with more guidance the Inception score
rises throughout, and FID is a U whose bottom is at little guidance.
"""

from gen_jax.sweeps import values

CONFIG, METRIC = "experiments/guidance/config.py:small", "digits_mlp/frechet"
ALSO = ("prompt_accuracy", "digits_mlp/recall")
X_AXIS = "guidance_scale"


def get_sweep():
  """Three models, each drawn from with every scale of the config."""
  return values("seed", range(3))
