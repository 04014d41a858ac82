"""Which peak rate suits AdamW with a cosine, AdamW with WSD, and Muon?"""

from gen_jax.sweeps import chain, fixed, product, values

CONFIG, METRIC = "configs/lm/pydoc.py:smoke", "validation/loss"
X_AXIS = "optimizer.learning_rate.peak"
OPTIMIZER, RATE = "optimizer.name", "optimizer.learning_rate.name"
DECAY = "optimizer.learning_rate.decay_fraction"


def get_sweep():
  """Five rates an octave apart; a seed that ../sweep.py does not use."""
  return product(
    chain(
      fixed({OPTIMIZER: "adamw", RATE: "cosine"}),
      fixed({OPTIMIZER: "adamw", RATE: "wsd", DECAY: 0.1}),
      fixed({OPTIMIZER: "muon", RATE: "cosine"}),
    ),
    values("optimizer.learning_rate.peak", [2.0**-k for k in range(9, 4, -1)]),
    fixed(
      {
        "task.model.width": 64,
        "task.model.num_heads": 8,
        "train.num_steps": 1000,
        "train.save_every": 1000,
        "evaluators.validation.every": 1000,
        "evaluators.validation.max_batches": 64,
      }
    ),
    values("seed", (100,)),
  )
