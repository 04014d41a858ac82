"""A small text-conditioned UNet on 1,797 handwritten digits with captions.

The images ship with scikit-learn, so this runs anywhere, offline. It is the other
half of `make quickstart`. `:small` is a quarter of it, for sweeps over many runs;
`:unconditional` a ninth, without captions, for sweeps over what diffusion itself is.
"""

import ml_collections

from configs import common

VARIANTS = ("full", "small", "unconditional")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """One of `VARIANTS`; `:smoke` shrinks it to seconds."""
  variant, smoke = common.parse_arg(arg, VARIANTS)
  config = common.images(
    common.diffusion(
      common.unet(image_channels=1, width=48, multipliers=(1, 2), attention_levels=()),
      common.text(max_length=12, num_layers=1, width=64),
    ),
    data={
      "name": "images",
      "source": {"name": "digits"},
      "tokenizer": {"name": "bpe", "vocab_size": 512},
      "image_size": 8,
      "channels": 1,
      "caption_length": 12,
      "batch_size": 64,
    },
    optimizer={"learning_rate": {"peak": 2e-3}},
    train={"num_steps": 300, "save_every": 150, "ema_decay": 0.995},
  )
  config.evaluators = {
    "validation": {"name": "loss", "every": 150},
    "reading": {"name": "prompt_accuracy", "every": 0},
  }
  config.sampling.update({"num_steps": 20, "guidance_scale": 2.0})
  if variant == "small":
    config.task.network.width = 24
    config.data.batch_size = 32
  if variant == "unconditional":
    config.task.network.width = 16
    config.task.conditioning = {"name": "none"}
    config.task.drop_prob = 0.0
    del config.data.tokenizer, config.data.caption_length
    config.data.batch_size = 32
    config.sampling.update({"num_steps": 10, "guidance_scale": 1.0})
    config.evaluators = {
      "validation": {"name": "loss", "every": 150},
      "fidelity": {"name": "fidelity", "every": 0, "features": "digits"},
    }
  return common.smoke(config) if smoke else config
