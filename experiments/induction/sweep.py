"""Do two layers learn to copy what repeats, and one layer never?

Olsson et al. 2022 (arXiv:2209.11895): induction heads need two layers of attention, and
appear at once, early in training.
"""

from gen_jax.sweeps import product, values

CONFIG, METRIC = "configs/lm/repeats.py", "by_position/33-64/loss"


def get_sweep():
  """One layer and two, three seeds."""
  return product(values("task.model.num_layers", (1, 2)), values("seed", range(3)))
