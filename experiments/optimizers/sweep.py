"""Is WSD as good as a cosine, and is Muon better than AdamW, each at its own rate?

Sources: Hu et al. 2024 (arXiv:2404.06395), section 4; Jordan et al. 2024, Liu et al.
2025 (arXiv:2502.16982). The rates are those of rates/, of another seed.
"""

from gen_jax.sweeps import chain, fixed, product, values

CONFIG, METRIC = "configs/lm/pydoc.py:smoke", "validation/loss"
OPTIMIZER, RATE = "optimizer.name", "optimizer.learning_rate.name"
DECAY = "optimizer.learning_rate.decay_fraction"
PEAK = "optimizer.learning_rate.peak"


def get_sweep():
  """Three optimisers, five seeds; evaluated also where the decay of WSD begins."""
  return product(
    values("seed", range(3, 8)),
    chain(
      fixed({OPTIMIZER: "adamw", RATE: "cosine", PEAK: 2.0**-8}),
      fixed({OPTIMIZER: "adamw", RATE: "wsd", DECAY: 0.1, PEAK: 2.0**-8}),
      fixed({OPTIMIZER: "muon", RATE: "cosine", PEAK: 2.0**-5}),
    ),
    fixed(
      {
        "task.model.width": 64,
        "task.model.num_heads": 8,
        "train.num_steps": 1000,
        "train.save_every": 1000,
        "evaluators.validation.every": 100,
        "evaluators.validation.max_batches": 64,
      }
    ),
  )
