"""DiT: Peebles & Xie 2022 (arXiv:2212.09748), conditioned on classes by adaLN-Zero.

variant   width  layers  heads  parameters   on
digits      96      6      4       1.1 M     1,797 handwritten digits, 8 x 8 pixels
small       64      2      8       0.2 M     the same, 2,000 steps without an average
xl        1152     28     16     674.8 M     latents of 256 x 256 images, 1,000 classes

`:xl` is DiT-XL/2 with the paper's recipe: AdamW at a constant 1e-4 without weight
decay, batches of 256, labels dropped with probability 0.1, EMA 0.9999, linear beta from
1e-4 to 0.02; the paper's FID on ImageNet is 2.27 after 7 M steps with guidance 1.5.
Only eps is trained: the second output of the released models, the variance of each
step, exists (learn_sigma) and is not trained. Images are in one folder per class.
Not yet run at full size; compiled for 16 chips of v5e (fsdp=16) a step takes 10.96 of
15.75 GiB and at least 95 ms.

`:digits` draws 200 of 200 digits correctly after 1,000 steps (one run, 16 minutes on
two cores under other load), validation/mse_eps 0.150.

gen-jax train  --config configs/diffusion/dit.py --workdir runs/dit
gen-jax sample --workdir runs/dit --num 8 --prompt seven
gen-jax plan   --config configs/diffusion/dit.py:xl --topology v5e:4x4
"""

import ml_collections

from configs import common
from configs.diffusion import digits, stable_diffusion

VARIANTS = ("digits", "small", "xl")
DIGITS = {"image_channels": 1, "image_size": 8, "patch_size": 2}
SIZES = {
  "digits": DIGITS | {"width": 96, "num_layers": 6, "num_heads": 4},
  "small": DIGITS | {"width": 64, "num_layers": 2, "num_heads": 8},
  "xl": {"image_channels": 4, "image_size": 32, "patch_size": 2, "learn_sigma": True}
  | {"width": 1152, "num_layers": 28, "num_heads": 16},
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """One of `VARIANTS`; `:smoke` shrinks it to seconds."""
  variant, smoke = common.parse_arg(arg, VARIANTS)
  network = {
    "name": "dit",
    "max_period": 10000.0 ** (128 / 127),  # diffusers' frequencies: it can be exported
    "timestep_offset": -1.0,
    **SIZES[variant],
  }
  config = {"digits": _digits, "small": _small, "xl": _xl}[variant](network)
  return common.smoke(config) if smoke else config


def _digits(network: dict) -> ml_collections.ConfigDict:
  """The digits' experiment with another network, and classes instead of captions."""
  config = digits.get_config()
  config.task.network = network
  config.task.conditioning = {"name": "labels", "num_classes": 10}
  del config.data["tokenizer"], config.data["caption_length"]
  config.train.update({"num_steps": 1000, "save_every": 500})
  config.evaluators.validation.every = 500
  return config


def _small(network: dict) -> ml_collections.ConfigDict:
  """For sweeps over many runs."""
  config = _digits(network)
  config.data.batch_size = 32
  config.train.update({"num_steps": 2000, "save_every": 2000})
  del config.train["ema_decay"]
  config.evaluators = {"validation": {"name": "loss", "every": 2000}}
  return config


def _xl(network: dict) -> ml_collections.ConfigDict:
  autoencoder = dict(stable_diffusion.AUTOENCODER)
  config = common.images(
    common.diffusion(
      network,
      {"name": "labels", "num_classes": 1000},
      schedule={"name": "linear"},
      target={"name": "eps"},
      time_sampler={"name": "uniform"},
      codec={"name": "latent", "autoencoder": autoencoder},
    ),
    data={
      "name": "images",
      "source": {"name": "image_folder", "directory": ""},
      "image_size": 256,
      "channels": 3,
      "batch_size": 256,
      "flip": True,
    },
    optimizer={
      "learning_rate": {"name": "constant", "peak": 1e-4, "warmup_steps": 0},
      "b2": 0.999,
      "weight_decay": 0.0,
      "clip_norm": None,
    },
    train={"num_steps": 400_000, "ema_decay": 0.9999, "save_every": 5000},
  )
  del config.optimizer.learning_rate["final_fraction"]
  config.sampling.update({"sampler": {"name": "ddpm"}, "num_steps": 250})
  config.sampling.guidance_scale = 1.5
  return config
