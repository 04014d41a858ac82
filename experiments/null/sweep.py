"""How often does a config differ from itself?"""

from gen_jax.sweeps import fixed, product, values

CONFIG, METRIC = "configs/lm/pydoc.py:smoke", "validation/loss"


def get_sweep():
  """Forty groups of three seeds; a test compares them in pairs."""
  return product(
    fixed(
      {
        "train.num_steps": 100,
        "train.save_every": 100,
        "evaluators.validation.every": 100,
        "evaluators.validation.max_batches": 16,
      }
    ),
    values("seed", range(120)),
  )
