"""Which peak rate suits a denoiser with and without a decay and an average?"""

from gen_jax.sweeps import fixed, product, values

CONFIG, METRIC = "configs/diffusion/dit.py:digits", "validation/loss"
X_AXIS = "optimizer.learning_rate.peak"


def get_sweep():
  """Six rates an octave apart; a seed that ../sweep.py does not use."""
  return product(
    values("optimizer.learning_rate.final_fraction", (1.0, 0.0)),
    values("train.ema_decay", (None, 0.9999)),
    values(X_AXIS, [2.0**-k for k in range(10, 4, -1)]),
    fixed(
      {
        "task.network.width": 64,
        "task.network.num_layers": 2,
        "task.network.num_heads": 8,
        "data.batch_size": 32,
        "train.num_steps": 2000,
        "train.save_every": 2000,
        "evaluators.validation.every": 2000,
        "evaluators.reading": None,
      }
    ),
    values("seed", (100,)),
  )
