"""Does what holds for a text model's optimiser hold for a denoiser of the same blocks?

The same question, arms and statistics as ../sweep.py, asked of a diffusion transformer.
The rates are those of rates/, of another seed.
"""

from gen_jax.sweeps import chain, fixed, product, values

CONFIG, METRIC = "configs/diffusion/dit.py:small", "validation/loss"
OPTIMIZER, RATE = "optimizer.name", "optimizer.learning_rate.name"
DECAY = "optimizer.learning_rate.decay_fraction"
PEAK = "optimizer.learning_rate.peak"


def get_sweep():
  """Three optimisers, five seeds; evaluated also where the decay of WSD begins."""
  return product(
    values("seed", range(3, 8)),
    chain(
      fixed({OPTIMIZER: "adamw", RATE: "cosine", PEAK: 2.0**-7}),
      fixed({OPTIMIZER: "adamw", RATE: "wsd", DECAY: 0.1, PEAK: 2.0**-8}),
      fixed({OPTIMIZER: "muon", RATE: "cosine", PEAK: 2.0**-7}),
    ),
    fixed({"evaluators.validation.every": 200}),
  )
