"""Does weight decay bring the jump from remembering to understanding forward?

Power et al. 2022 (arXiv:2201.02177): a transformer knows its training pairs of a table
long before it knows the others; of all regularisers weight decay helps most.
"""

from gen_jax.sweeps import fixed, product, values

CONFIG, METRIC = "configs/lm/modular.py", "validation/accuracy"
ALSO = ("train/accuracy",)


def get_sweep():
  """Without weight decay, and with three of it; three seeds."""
  return product(
    values("optimizer.weight_decay", (0.0, 0.3, 1.0, 3.0)),
    fixed({"train.health_check": False}),
    values("seed", range(3)),
  )
