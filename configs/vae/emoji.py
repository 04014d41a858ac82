"""A KL autoencoder for 64x64 emoji: 64x64x3 to 8x8x16, a twelfth of the size.

The command line names the images: a folder with captions
(--config.data.source.directory=DIR), --config.data.source=npz
--config.data.source.path=FILE, or npm's emoji packages:

    npm install --prefix DIR @lobehub/fluent-emoji-3d emojibase-data
    ... --config.data.source=emoji --config.data.source.directory=DIR

This is the first step of `ldm_emoji.py`.
"""

import ml_collections

from configs import common

AUTOENCODER = {
  "name": "autoencoder",
  "image_channels": 3,
  "latent_channels": 16,
  "width": 24,
  "multipliers": (1, 2, 4, 4),
  "num_blocks": 1,
  "num_groups": 8,
  "middle_attention": False,
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """`:smoke` shrinks it to seconds, on digits."""
  _, smoke = common.parse_arg(arg)
  config = common.images(
    {
      "name": "autoencoder",
      "autoencoder": dict(AUTOENCODER),
      # {"name": "discriminator"} sharpens longer runs; in short ones it distracts.
      "discriminator": None,
      "feature_weight": 0.2,
    },
    data={
      "name": "images",
      "source": {"name": "image_folder", "directory": "", "validation_fraction": 0.05},
      "image_size": 64,
      "channels": 3,
      "batch_size": 16,
      "flip": True,
    },
    optimizer={"learning_rate": {"peak": 2e-3}, "weight_decay": 0.0},
    train={"num_steps": 1000, "ema_decay": 0.99},
  )
  config.evaluators.validation.every = 500
  return common.smoke(config) if smoke else config
