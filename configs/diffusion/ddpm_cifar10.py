"""DDPM on CIFAR-10: Ho et al. 2020 (arXiv:2006.11239), 35,746,307 parameters.

The recipe of appendix B: 32 x 32 images, random mirroring, T = 1000 with beta from 1e-4
to 0.02, eps predicted with unit weight, Adam at 2e-4 after 5,000 steps of warm-up,
batches of 128, clipping at 1, dropout 0.1, EMA 0.9999, 800,000 steps. The paper's FID
is 3.17, with 1,000 ancestral steps. Differences: times are continuous, in [0.001, 1];
the EMA has a warm-up. The model is unconditional. Not yet run at full size.

    gen-jax plan --config configs/diffusion/ddpm_cifar10.py --topology v5e:2x2
"""

import ml_collections

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """`:smoke` shrinks it to seconds, on the pixels of digits."""
  _, smoke = common.parse_arg(arg)
  unet = common.unet(
    image_channels=3,
    width=128,
    multipliers=(1, 2, 2, 2),
    num_blocks=2,
    attention_levels=(1,),
    num_heads=1,
    attention={"name": "self_attention"},
    num_groups=32,
    eps=1e-6,
    dropout=0.1,
    timestep_offset=-1.0,
  )
  config = common.images(
    common.diffusion(
      unet,
      {"name": "none"},
      schedule={"name": "linear"},
      target={"name": "eps"},
      time_sampler={"name": "uniform"},
      drop_prob=0.0,
    ),
    data={
      "name": "images",
      "source": {"name": "tfds_images", "dataset": "cifar10", "caption_field": "label"},
      "image_size": 32,
      "channels": 3,
      "batch_size": 128,
      "flip": True,
    },
    optimizer={
      "learning_rate": {"name": "constant", "peak": 2e-4, "warmup_steps": 5000},
      "b2": 0.999,
      "weight_decay": 0.0,
    },
    train={
      "num_steps": 800_000,
      "ema_decay": 0.9999,
      "log_every": 100,
      "save_every": 5000,
    },
  )
  del config.optimizer.learning_rate["final_fraction"]
  config.sampling.update(
    {"sampler": {"name": "ddpm"}, "num_steps": 1000, "guidance_scale": 1.0}
  )
  return common.smoke(config) if smoke else config
