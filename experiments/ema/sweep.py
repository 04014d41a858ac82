"""How long should the average of the weights be?

Karras et al. 2023 (arXiv:2312.02696), figure 5: FID along the length of the average is
a U; weights without an average are the worst.
"""

from gen_jax.sweeps import fixed, product, values

CONFIG, METRIC = "configs/diffusion/digits.py:unconditional", "digits_mlp/frechet"
ALSO = ("validation/loss",)
X_AXIS = "train.ema_warmup"


def get_sweep():
  """Power-function averages, from hardly any to that of all weights; four seeds."""
  return product(
    values("train.ema_warmup", (1e6, 200.0, 50.0, 20.0, 10.0, 5.0, 3.0, 2.0)),
    values("seed", range(4)),
    fixed(
      {
        "train.ema_decay": 0.9999,
        "optimizer.learning_rate": {"name": "constant", "peak": 2e-3},
        "train.num_steps": 500,
        "train.save_every": 500,
        "train.health_check": False,
        "evaluators.validation.every": 0,
      }
    ),
  )
