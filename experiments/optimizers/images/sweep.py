"""Does what holds for a text model's optimiser hold for a denoiser of the same blocks?

The same question, arms and statistics as ../sweep.py, asked of a diffusion transformer.
The rates are those of rates/, of another seed.
"""

from gen_jax.sweeps import chain, fixed, product, values

CONFIG, METRIC = "configs/diffusion/dit.py:digits", "validation/loss"
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
    fixed(
      {
        "task.network.width": 64,
        "task.network.num_layers": 2,
        "task.network.num_heads": 8,
        "data.batch_size": 32,
        "train.num_steps": 2000,
        "train.save_every": 2000,
        "train.ema_decay": None,
        "evaluators.validation.every": 200,
        "evaluators.reading": None,
      }
    ),
  )
