"""Autoencoders: they draw nothing by themselves, and make the latents of images."""

import jax

from gen_jax.data import datasets
from gen_jax.families import base, images
from gen_jax.inference import codes
from gen_jax.tasks import autoencoder, diffusion
from gen_jax.types import Params, PyTree


def _check(task: autoencoder.Autoencode, data: datasets.ImageData, sampling) -> None:
  del sampling
  owner, own = "task.autoencoder.image_channels", task.autoencoder.config.image_channels
  base.check_equal("data.channels", data.channels, owner, own)


def _codec(task: autoencoder.Autoencode, params: Params, frozen: PyTree):
  del frozen
  codec = autoencoder.codec(task.autoencoder)
  own = {"autoencoder": params["autoencoder"]}
  return codec, {**codec.init(jax.random.key(0)), **own}


def _encoder(task: autoencoder.Autoencode, params: Params, data, flip: bool):
  return codes.encoder(task.autoencoder, params["autoencoder"], data, flip)


FAMILY = base.Family(
  name="autoencoder",
  kind="an autoencoder",
  gives="images",
  settings=images.FAMILY.settings,
  flags=images.FAMILY.flags,
  datasets=(datasets.ImageData,),
  sampling=diffusion.Sampling,
  check=_check,
  codec=_codec,
  encoder=_encoder,
  generator=base.refuse(
    "an autoencoder draws nothing for prompts: train a model of images"
  ),
  generate=images.generate,
  program=base.refuse("--sample needs a model of texts or images, not an autoencoder"),
  sample=images.sample,
  check_flags=images.check_flags,
  export=base.refuse(
    "an autoencoder by itself is not exported; only language models and latent"
    " diffusion are"
  ),
  adapter_plans=base.refuse("LoRA files are of language models and Stable Diffusion"),
  reference_images=images.reference_images,
  scorer=images.scorer,
)
