"""Does the best learning rate stay where it is when a UNet gets wider, by muP?

Yang et al. 2022 (arXiv:2203.03466) show transformers and residual networks; this is a
denoiser, all convolutions but for the attention in its middle.
"""

from gen_jax.sweeps import chain, fixed, product, values

CONFIG, METRIC = "configs/diffusion/digits.py:unconditional", "validation/loss"
X_AXIS = "optimizer.learning_rate.peak"


def get_sweep():
  """The base, twice and four times its width; rates an octave apart, three seeds."""
  width, base = "task.network.width", "task.network.base_width"
  models = chain(
    values(width, (8, 16, 32)), product(values(width, (16, 32)), fixed({base: 8}))
  )
  how = {
    "task.network.num_groups": 4,
    "task.network.num_heads": None,
    "task.network.head_dim": 8,
    "data.batch_size": 16,
    "train.num_steps": 200,
    "train.save_every": 200,
    "evaluators.validation.every": 200,
    "evaluators.fidelity": None,
  }
  rates = values(X_AXIS, [2.0**-k for k in range(8, 2, -1)])
  return product(fixed(how), values("seed", range(3)), models, rates)
