"""Does an average of the weights replace the decay of the rate, for a denoiser?

Hägele et al. 2024 (arXiv:2405.18392) ask it of language models. ../README.md reads this
sweep next to that of the other family. The rates are those of rates/, of another seed.
"""

from gen_jax.sweeps import chain, fixed, product, values

CONFIG, METRIC = "configs/diffusion/dit.py:small", "validation/loss"
AVERAGE = values("train.ema_decay", (None, 0.9999))


def _rate(final: float, peak: float):
  at = "optimizer.learning_rate"
  return fixed({f"{at}.final_fraction": final, f"{at}.peak": peak})


def get_sweep():
  """A constant rate and a cosine to 0, without and with an average; five seeds."""
  return product(
    values("seed", range(3, 8)),
    product(chain(_rate(1.0, 2.0**-8), _rate(0.0, 2.0**-7)), AVERAGE),
    fixed({"evaluators.validation.every": 200}),
  )
