"""Does an average of the weights replace the decay of the rate, for a text model?

Hägele et al. 2024 (arXiv:2405.18392) ask it of language models. ../README.md reads this
sweep next to that of the other family. The rates are those of rates/, of another seed.
"""

from gen_jax.sweeps import chain, fixed, product, values

CONFIG, METRIC = "configs/lm/pydoc.py:smoke", "validation/loss"
AVERAGE = values("train.ema_decay", (None, 0.9999))


def _rate(final: float, peak: float):
  at = "optimizer.learning_rate"
  return fixed({f"{at}.final_fraction": final, f"{at}.peak": peak})


def get_sweep():
  """A constant rate and a cosine to 0, without and with an average; five seeds."""
  return product(
    values("seed", range(3, 8)),
    product(chain(_rate(1.0, 2.0**-8), _rate(0.0, 2.0**-8)), AVERAGE),
    fixed(
      {
        "task.model.width": 64,
        "task.model.num_heads": 8,
        "train.num_steps": 1000,
        "train.save_every": 1000,
        "evaluators.validation.every": 100,
        "evaluators.validation.max_batches": 64,
      }
    ),
  )
