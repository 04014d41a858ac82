"""How far do two minutes on two CPU cores go on characters of Shakespeare?

nanoGPT's CPU example at its own learning rate and at twice it, and what today's habits
add: configs/lm/shakespeare.py, `cpu` and `best`, which this sweep writes out.
"""

from gen_jax.sweeps import chain, fixed, product, values

CONFIG, METRIC = "configs/lm/shakespeare.py:cpu", "validation/loss"
PEAK = "optimizer.learning_rate.peak"


def get_sweep():
  """Three recipes on tinyshakespeare.txt of the current folder; five seeds."""
  best = {
    "task.model.norm": "rms_norm",
    "task.model.position": None,
    "task.model.rotary": "rotary",
    "task.model.mlp.activation": "relu_squared",
    "optimizer": "muon",
    "optimizer.learning_rate": {"name": "linear", "peak": 6e-3, "warmup_steps": 100},
  }
  return product(
    values("seed", range(1, 6)),
    chain(fixed({PEAK: 1e-3}), fixed({PEAK: 2e-3}), fixed(best)),
    fixed(
      {
        "data.source": "files",
        "data.source.pattern": "tinyshakespeare.txt",
        "evaluators.validation.every": 500,
      }
    ),
  )
