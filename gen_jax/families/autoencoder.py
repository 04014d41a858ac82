"""Autoencoders: they draw nothing by themselves, and make the latents of images."""

from gen_jax.data import datasets
from gen_jax.families import base, images
from gen_jax.tasks import autoencoder, diffusion
from gen_jax.types import InputError


def _check(task: autoencoder.Autoencode, data: datasets.ImageData, sampling) -> None:
  del sampling
  owner, own = "task.autoencoder.image_channels", task.autoencoder.config.image_channels
  base.check_equal("data.channels", data.channels, owner, own)


def _generator(experiment: base.Experiment):
  del experiment
  raise InputError("an autoencoder draws nothing for prompts: train a model of images")


FAMILY = base.Family(
  name="autoencoder",
  datasets=(datasets.ImageData,),
  sampling=diffusion.Sampling,
  check=_check,
  generator=_generator,
  reference_images=images.reference_images,
)
