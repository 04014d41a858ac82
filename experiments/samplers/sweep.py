"""Which sampler needs how many evaluations of the network?

Song et al. 2020 (arXiv:2010.02502), table 1; Lu et al. 2022 (2211.01095), Zhao et al.
2023 (2302.04867): deterministic samplers need far fewer than ancestral ones, those of
second order about ten.
"""

from gen_jax.sweeps import values

CONFIG = "experiments/samplers/config.py:unconditional"
METRIC = "digits_mlp/frechet"
X_AXIS = "evaluations"


def get_sweep():
  """Three models, each drawn from with every sampler of the config."""
  return values("seed", range(3))
