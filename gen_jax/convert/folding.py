"""What a format has no place for, put exactly into the weights next to it.

Latents of mean m and standard deviation s in each channel become latents of 0 and 1:
the autoencoder ends with a linear map of each pixel and begins with one, which takes
them on. AutoencoderKL has fields latents_mean and latents_std, but the pipelines of
Stable Diffusion and DiT read neither; they multiply by one number.

A network that counts time from another number sees cos and sin of w (k + d), which are
those of w k, turned by the angle w d: its first layer is turned back.
"""

from typing import Any

import numpy as np

from gen_jax.nn import embed
from gen_jax.types import Params


def latents(vae: Params, mean: Any, std: Any) -> Params:
  """An autoencoder whose latents are (z - mean) / std; the images are the same.

  Args:
    vae: weights of a KL autoencoder.
    mean, std: [Z] of its latents.
  """
  mean, std = np.float64(mean), np.float64(std)
  size = len(mean)
  into, out = (_float64(vae[name]) for name in ("to_posterior", "from_latent"))
  width = np.concatenate([1.0 / std, np.ones(size)])
  shift = np.concatenate([-mean / std, -2.0 * np.log(std)])  # of the mean, of log var
  kernel = out["kernel"]
  folded = {
    "to_posterior": {
      "kernel": into["kernel"] * width,
      "bias": into["bias"] * width + shift,
    },
    "from_latent": {
      "kernel": kernel * std[:, None],
      "bias": out["bias"] + mean @ kernel.reshape(size, -1),
    },
  }
  return {**vae, **{name: _float32(layer) for name, layer in folded.items()}}


def time(unet: Params, width: int, shift: float) -> Params:
  """A UNet that takes k for what it took k + shift for.

  Args:
    unet: weights.
    width: of the sinusoids of time, see `unet.Config`.
  """
  layer = _float64(unet["time_in"])
  angle = np.float64(np.asarray(embed.frequencies(width)))[:, None] * shift
  cos, sin = np.split(layer["kernel"], 2)
  turned = [cos * np.cos(angle) + sin * np.sin(angle)]
  turned += [sin * np.cos(angle) - cos * np.sin(angle)]
  kernel = np.concatenate(turned)
  return {**unet, "time_in": _float32({**layer, "kernel": kernel})}


def _float64(layer: Params) -> Params:
  return {name: np.asarray(value, np.float64) for name, value in layer.items()}


def _float32(layer: Params) -> Params:
  return {name: np.asarray(value, np.float32) for name, value in layer.items()}
