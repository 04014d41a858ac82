"""Fine-tuning of Stable Diffusion, or of your own model, on a folder of images.

    gen-jax import --from DIRECTORY --workdir runs/sd
    gen-jax train --config configs/diffusion/finetune.py:lora --workdir runs/mine
      --config.init_from.workdir=runs/sd --config.data.source.directory=images/

variant     what is trained             rate   on
full        every weight                1e-5   a folder with captions
lora        rank 4, the UNet's          1e-4   a folder with captions
            attention
dreambooth  every weight                2e-6   a few images of one object, and images
                                               of its class, drawn beforehand:

    gen-jax sample --workdir runs/sd --prompt "a dog" --num 200 --out runs/dogs
    gen-jax train --config configs/diffusion/finetune.py:dreambooth --workdir runs/mine
      --config.init_from.workdir=runs/sd --config.data.source.directory=my_dog/
      --config.data.source.prior_directory=runs/dogs

Rates and steps: Hu et al. 2021 (arXiv:2106.09685) and its use on Stable Diffusion; Ruiz
et al. 2023 (2208.12242) section 4. With --config.adapter.name=lora any variant trains
only adapters. If data.image_size, data.channels and data.caption_length are None, they
are those of the model that it starts from. Not yet run at full size.
"""

import ml_collections

from configs import common
from configs.diffusion import digits

VARIANTS = ("full", "lora", "dreambooth")
RATE = {"full": 1e-5, "lora": 1e-4, "dreambooth": 2e-6}
STEPS = {"full": 2000, "lora": 1000, "dreambooth": 800}
SOURCES = {
  "full": {"name": "image_folder", "directory": ""},
  "lora": {"name": "image_folder", "directory": ""},
  "dreambooth": {
    "name": "dreambooth",
    "directory": "",
    "prompt": "a sks dog",
    "prior_prompt": "a dog",
  },
}
PATTERN = r"^unet/.*attention/(query|key|value|out)/kernel$"


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """`:full`, `:lora` or `:dreambooth`; `:smoke` trains a tiny model from scratch."""
  variant, smoke = common.parse_arg(arg, VARIANTS)
  config = common.images(
    None,
    data={
      "name": "images",
      "source": SOURCES[variant],
      "tokenizer": {"name": "bytes"},  # replaced by that of the initial model
      **dict.fromkeys(("image_size", "channels", "caption_length")),  # its model's
      "batch_size": 2 if variant == "dreambooth" else 4,
    },
    optimizer={"b2": 0.999},
    train={"num_steps": STEPS[variant], "save_every": 200},
  )
  rate = {"name": "constant", "peak": RATE[variant]}
  config.optimizer.learning_rate = ml_collections.ConfigDict(rate)
  config.sampling.guidance_scale = 7.5
  if smoke:
    config.task = digits.get_config().task
    config.data.caption_length = config.task.conditioning.text_encoder.max_length
    return common.smoke(config)
  with config.unlocked():
    config.init_from = {"workdir": "runs/sd"}
    if variant == "lora":
      config.adapter = {"name": "lora", "rank": 4, "alpha": 4.0, "pattern": PATTERN}
  return config
