"""Which peak rate suits a denoiser with and without a decay and an average?"""

from gen_jax.sweeps import product, values

CONFIG, METRIC = "configs/diffusion/dit.py:small", "validation/loss"
X_AXIS = "optimizer.learning_rate.peak"


def get_sweep():
  """Six rates an octave apart; a seed that ../sweep.py does not use."""
  return product(
    values("optimizer.learning_rate.final_fraction", (1.0, 0.0)),
    values("train.ema_decay", (None, 0.9999)),
    values(X_AXIS, [2.0**-k for k in range(10, 4, -1)]),
    values("seed", (100,)),
  )
