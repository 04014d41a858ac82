"""How large should a model be for a budget of compute?

Hoffmann et al. 2022 (arXiv:2203.15556), figure 3: at each budget the loss is a valley
in the size, and valleys move to larger sizes as N = k C^a with a = 0.49.
"""

from gen_jax.sweeps import chain, product, values

CONFIG, METRIC = "experiments/scaling/config.py", "validation/loss"
X_AXIS = "size"

# The widths tried at each budget of FLOPs.
WIDTHS = (16, 24, 32, 48, 64, 96)
BUDGETS = {1.5e11: WIDTHS[:4], 3e11: WIDTHS[:5], 1e12: WIDTHS[2:]}


def get_sweep():
  """Four or five sizes at each of three budgets, three seeds."""
  from gen_jax.sweeps import ladder

  rungs = [
    ladder.arms(CONFIG, ladder.sizes(CONFIG, widths), [budget])
    for budget, widths in BUDGETS.items()
  ]
  return product(chain(*rungs), values("seed", range(3)))
