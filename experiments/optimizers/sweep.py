"""Is WSD as good as a cosine, and is Muon better than AdamW, at AdamW's rate?

Sources: Hu et al. 2024 (arXiv:2404.06395), section 4; Jordan et al. 2024, Liu et al.
2025 (arXiv:2502.16982). Width and rate are of ../learning_rate, whose seeds are others.
"""

from gen_jax.sweeps import chain, fixed, product, values

CONFIG, METRIC = "configs/lm/pydoc.py:smoke", "validation/loss"
OPTIMIZER, RATE = "optimizer.name", "optimizer.learning_rate.name"
DECAY = "optimizer.learning_rate.decay_fraction"


def get_sweep():
  """Three optimisers, five seeds; evaluated also where the decay of WSD begins."""
  return product(
    values("seed", range(3, 8)),
    chain(
      fixed({OPTIMIZER: "adamw", RATE: "cosine"}),
      fixed({OPTIMIZER: "adamw", RATE: "wsd", DECAY: 0.1}),
      fixed({OPTIMIZER: "muon", RATE: "cosine"}),
    ),
    fixed(
      {
        "task.model.width": 64,
        "task.model.num_heads": 8,
        "optimizer.learning_rate.peak": 2.0**-9,
        "train.num_steps": 1000,
        "train.save_every": 1000,
        "evaluators.validation.every": 100,
        "evaluators.validation.max_batches": 64,
      }
    ),
  )
