"""Which peak learning rate trains the smallest language model best?"""

from gen_jax.sweeps import product, values

CONFIG, METRIC = "configs/lm/pydoc.py:smoke", "validation/loss"


def get_sweep():
  """Four rates, three seeds each."""
  rates = values("optimizer.learning_rate.peak", (1e-3, 3e-3, 1e-2, 3e-2))
  return product(rates, values("train.num_steps", (200,)), values("seed", range(3)))
