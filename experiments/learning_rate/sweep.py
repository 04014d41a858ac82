"""Does the best learning rate move with the width of a transformer?"""

from gen_jax.sweeps import fixed, product, values, zip_

CONFIG, METRIC = "configs/lm/pydoc.py:smoke", "validation/loss"
X_AXIS = "optimizer.learning_rate.peak"


def get_sweep():
  """Three widths at one head size, six rates an octave apart, three seeds."""
  return product(
    zip_({"task.model.width": (32, 64, 128), "task.model.num_heads": (4, 8, 16)}),
    values("optimizer.learning_rate.peak", [2.0**-k for k in range(10, 4, -1)]),
    fixed(
      {
        "train.num_steps": 200,
        "train.save_every": 200,
        "evaluators.validation.every": 200,
        "evaluators.validation.max_batches": 64,
      }
    ),
    values("seed", range(3)),
  )
