"""Which target trains best on which schedule, at equal compute?

Targets: Ho et al. 2020 (arXiv:2006.11239) eps, Salimans & Ho 2022 (2202.00512) x0 and
v, Lipman et al. 2022 (2210.02747) velocity, Karras et al. 2022 (2206.00364) EDM.
"""

from gen_jax.sweeps import chain, fixed, product, values

CONFIG, METRIC = "configs/diffusion/digits.py:unconditional", "digits_mlp/frechet"
TARGET, SCHEDULE = "task.target", "task.schedule"
X_AXIS = TARGET


def get_sweep():
  """Four targets on three schedules, and EDM as published; three seeds."""
  return product(
    chain(
      product(
        values(SCHEDULE, ("cosine", "vp_linear", "rectified_flow")),
        values(TARGET, ("eps", "x0", "v", "velocity")),
      ),
      fixed(
        {
          SCHEDULE: "karras",
          TARGET: "edm",
          "task.target.sigma_data": 0.75,
          "task.time_sampler": "lognormal_sigma",
          "sampling.grid": "karras",
        }
      ),
    ),
    values("seed", range(3)),
    fixed(
      {
        "train.num_steps": 400,
        "train.save_every": 400,
        "train.health_check": False,
        "evaluators.validation.every": 0,
        "sampling.num_steps": 20,
      }
    ),
  )
