"""Which peak rate suits a denoiser with AdamW and a cosine, with WSD, and with Muon?"""

from gen_jax.sweeps import chain, fixed, product, values

CONFIG, METRIC = "configs/diffusion/dit.py:small", "validation/loss"
X_AXIS = "optimizer.learning_rate.peak"
OPTIMIZER, RATE = "optimizer.name", "optimizer.learning_rate.name"
DECAY = "optimizer.learning_rate.decay_fraction"


def get_sweep():
  """Seven rates an octave apart; a seed that ../sweep.py does not use."""
  return product(
    chain(
      fixed({OPTIMIZER: "adamw", RATE: "cosine"}),
      fixed({OPTIMIZER: "adamw", RATE: "wsd", DECAY: 0.1}),
      fixed({OPTIMIZER: "muon", RATE: "cosine"}),
    ),
    values(X_AXIS, [2.0**-k for k in range(10, 3, -1)]),
    values("seed", (100,)),
  )
