"""Which peak rate suits a text model with and without a decay and an average?"""

from gen_jax.sweeps import fixed, product, values

CONFIG, METRIC = "configs/lm/pydoc.py:smoke", "validation/loss"
X_AXIS = "optimizer.learning_rate.peak"


def get_sweep():
  """Six rates an octave apart; a seed that ../sweep.py does not use."""
  return product(
    values("optimizer.learning_rate.final_fraction", (1.0, 0.0)),
    values("train.ema_decay", (None, 0.9999)),
    values(X_AXIS, [2.0**-k for k in range(10, 4, -1)]),
    fixed(
      {
        "task.model.width": 64,
        "task.model.num_heads": 8,
        "train.num_steps": 1000,
        "train.save_every": 1000,
        "evaluators.validation.every": 1000,
        "evaluators.validation.max_batches": 64,
      }
    ),
    values("seed", (100,)),
  )
