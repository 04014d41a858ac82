"""Which peak rate suits a denoiser with AdamW and a cosine, with WSD, and with Muon?"""

from gen_jax.sweeps import chain, fixed, product, values

CONFIG, METRIC = "configs/diffusion/dit.py:digits", "validation/loss"
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
    fixed(
      {
        "task.network.width": 64,
        "task.network.num_layers": 2,
        "task.network.num_heads": 8,
        "data.batch_size": 32,
        "train.num_steps": 2000,
        "train.save_every": 2000,
        "train.ema_decay": None,
        "evaluators.validation.every": 2000,
        "evaluators.reading": None,
      }
    ),
    values("seed", (100,)),
  )
