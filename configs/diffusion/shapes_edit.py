"""Editing by instruction, in the InstructPix2Pix form: shapes made green, or moved.

The image is concatenated to x_t and the instruction is the caption. Each is dropped at
random in training, so that each has its own guidance scale (Brooks et al. 2023,
arXiv:2211.09800). After 2,000 steps 55.5 % of 200 edits are correct in all that changes
and in all that stays; see experiments/shapes/README.md.

gen-jax train --config configs/diffusion/shapes_edit.py --workdir runs/edit
  [--config.init_from.workdir=runs/shapes]
gen-jax edit  --workdir runs/edit --image before.png --prompt "make the circle green"
"""

import ml_collections

from configs import common
from configs.diffusion import shapes


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """`:smoke` shrinks it to seconds."""
  _, smoke = common.parse_arg(arg)
  config = shapes.get_config()
  config.task.condition = {"name": "instruction"}
  config.task.condition_drop_prob = 0.1
  config.task.network.extra_channels = config.task.network.image_channels
  config.data.name = "edits"
  config.evaluators["reading"] = {"name": "edits", "every": 0, "num": 200}
  config.sampling.guidance_scale = 3.0
  if smoke:
    config = common.smoke(config)
    config.task.network.image_channels = config.task.network.extra_channels = 3
    config.data.update({"name": "edits", "image_size": 16, "channels": 3})
    config.data.source = {"name": "shapes", "num": 64, "num_validation": 8, "side": 16}
  return config
