"""A text-conditioned UNet on drawn scenes of shapes, scored exactly.

Captions like "a small red circle on the left, a large blue square at the top"; nothing
to download. 100 % of 200 prompts are drawn correctly after 2,000 steps, 17 minutes on
one core; see experiments/shapes/README.md.

gen-jax train  --config configs/diffusion/shapes.py --workdir runs/shapes
gen-jax sample --workdir runs/shapes --num 8 --prompt "a large red triangle on the left"
"""

import ml_collections

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """`:smoke` shrinks it to seconds."""
  _, smoke = common.parse_arg(arg)
  config = common.images(
    common.diffusion(
      common.unet(
        image_channels=48,
        width=96,
        multipliers=(1,),
        num_blocks=2,
        attention_levels=(0,),
      ),
      common.text(
        max_length=40, num_layers=2, width=192, position=None, rotary={"name": "rotary"}
      ),
      # The layout is decided at high noise, which hides all but averages.
      schedule={"name": "shift", "factor": 3.0, "schedule": {"name": "cosine"}},
      codec={"name": "patches", "side": 4},
    ),
    data={
      "name": "images",
      "source": {"name": "shapes", "num": 100_000},
      "tokenizer": {"name": "bpe", "vocab_size": 512},
      "image_size": 24,
      "channels": 3,
      "caption_length": 40,
      "batch_size": 32,
    },
    optimizer={"name": "muon", "learning_rate": {"peak": 2e-3, "warmup_steps": 100}},
    train={"num_steps": 2000, "ema_decay": 0.998},
  )
  config.evaluators["reading"] = {"name": "prompt_accuracy", "every": 0}
  config.sampling.num_steps = 20
  return common.smoke(config) if smoke else config
