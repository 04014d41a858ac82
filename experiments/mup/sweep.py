"""Does the best learning rate stay where it is when a transformer gets wider, by muP?

Yang et al. 2022 (arXiv:2203.03466), figure 1: the best rate falls with the width under
the standard parametrisation and stays under muP.
"""

from gen_jax.sweeps import chain, fixed, product, values, zip_

CONFIG, METRIC = "configs/lm/pydoc.py:smoke", "validation/loss"
X_AXIS = "optimizer.learning_rate.peak"


def get_sweep():
  """The base, four and eight times its width; rates an octave apart, three seeds."""
  width, heads = "task.model.width", "task.model.num_heads"
  wide = zip_({width: (128, 256), heads: (16, 32)})
  models = chain(
    fixed({width: 32, heads: 4}),
    wide,
    product(wide, fixed({"task.model.base_width": 32})),
  )
  how = {
    "train.num_steps": 200,
    "train.save_every": 200,
    "evaluators.validation.every": 200,
    "evaluators.validation.max_batches": 64,
  }
  rates = values(X_AXIS, [2.0**-k for k in range(10, 4, -1)])
  return product(fixed(how), values("seed", range(3)), models, rates)
