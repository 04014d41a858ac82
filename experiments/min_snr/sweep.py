"""Does a loss weighted by min(SNR, 5) converge faster?

Hang et al. 2023 (arXiv:2303.09556), figure 1 and section 4: 3.4 times as fast as the
weights before it. The network predicts x0; weights are those of its error.
"""

from gen_jax.sweeps import chain, fixed, product, values

CONFIG, METRIC = "configs/diffusion/digits.py:unconditional", "digits_mlp/frechet"
WEIGHTING, GAMMA = "task.weighting", "task.weighting.gamma"


def get_sweep():
  """1, min(SNR, 5) and, as no SNR here is above a million, SNR itself; five seeds."""
  return product(
    chain(
      fixed({WEIGHTING: "unit"}),
      fixed({WEIGHTING: "min_snr", GAMMA: 5.0}),
      fixed({WEIGHTING: "min_snr", GAMMA: 1e6}),
    ),
    values("seed", range(5)),
    fixed(
      {
        "task.target": "x0",
        "optimizer.clip_norm": None,
        "train.num_steps": 600,
        "train.save_every": 600,
        "train.health_check": False,
        "evaluators.validation.every": 0,
        "evaluators.fidelity.every": 100,
      }
    ),
  )
