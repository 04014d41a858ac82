"""Does the best learning rate stay where it is when a transformer gets wider, by muP?

Yang et al. 2022 (arXiv:2203.03466), figure 1: the best rate falls with the width under
the standard parametrisation and stays under muP, where wider is better.
"""

from gen_jax.sweeps import chain, fixed, product, values, zip_

CONFIG, METRIC = "configs/lm/pydoc.py:smoke", "validation/loss"
X_AXIS = "optimizer.learning_rate.peak"


def get_sweep():
  """The base, two and four times its width; rates an octave apart, three seeds.

  The last model starts as GPT-2 does, which suits it better than what suits the base.
  """
  width, heads, std = "task.model.width", "task.model.num_heads", "task.model.init_std"
  wide = zip_({width: (64, 128), heads: (8, 16)})
  models = chain(
    fixed({width: 32, heads: 4, std: 0.08}),
    product(wide, fixed({std: 0.08})),
    product(wide, fixed({std: 0.08, "task.model.base_width": 32})),
    fixed({width: 128, heads: 16, std: 0.02}),
  )
  how = {
    "task.model.tied_head": False,
    "train.num_steps": 200,
    "train.save_every": 200,
    "evaluators.validation.every": 200,
    "evaluators.validation.max_batches": 64,
  }
  rates = values(X_AXIS, [2.0**-k for k in range(10, 4, -1)])
  return product(fixed(how), values("seed", range(1, 4)), models, rates)
