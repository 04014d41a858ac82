"""Encodes images with an autoencoder; mean and std of the latent channels."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from gen_jax.data import datasets, image_files, latents
from gen_jax.tasks import base
from gen_jax.types import InputError, Params

BATCH_SIZE = 32


def encoder(
  model: nn.Module, weights: Params, data: datasets.ImageData, flip: bool
) -> Callable[[Sequence[dict]], Iterator[latents.Code]]:
  """A function: examples -> their `latents.Code`s, moments float32; F = 2 with `flip`.

  Raises:
    InputError: when called, for codes that are not finite.
  """
  sides = (1, -1) if flip else (1,)

  def encode(weights, x):
    moments = base.apply(model, weights, x, method="encode")
    return jax.numpy.concatenate(moments, -1)

  compiled = jax.jit(encode)

  def codes(examples: Sequence[dict]) -> Iterator[latents.Code]:
    for first in range(0, len(examples), BATCH_SIZE):
      batch = examples[first : first + BATCH_SIZE]
      size, channels = data.image_size, data.channels
      pixels = [image_files.to_square(e["image"], size, channels) for e in batch]
      pixels += pixels[:1] * (BATCH_SIZE - len(batch))
      x = np.stack(pixels).astype(np.float32) / 127.5 - 1.0
      found = [np.asarray(compiled(weights, x[:, :, ::s])) for s in sides]
      if not all(np.isfinite(f).all() for f in found):
        raise InputError(
          "the autoencoder gives codes that are not finite; train another one"
        )
      for i, example in enumerate(batch):
        about = {k: example[k] for k in ("caption", "label") if k in example}
        yield np.stack([f[i] for f in found]), about

  return codes


def sums(codes: Sequence[latents.Code]) -> dict[str, Any]:
  """Sums of latents drawn from posteriors, and of their squares, in float64."""
  mean, std = np.split(np.stack([m for m, _ in codes]).astype(np.float64), 2, -1)
  axes = tuple(range(mean.ndim - 1))
  return {
    "num_images": len(codes),
    "count": mean[..., 0].size,
    "sums": [mean.sum(axes).tolist(), (mean**2 + std**2).sum(axes).tolist()],
  }


def statistics(pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Mean and std per channel, and the number of images, from the sums of all pieces."""
  if not pieces:
    raise InputError("the data set has no images; look at its source and split")
  count = sum(piece["count"] for piece in pieces)
  mean, second = np.sum([piece["sums"] for piece in pieces], 0) / count
  std = np.sqrt(np.maximum(second - mean**2, 1e-12))
  num = sum(piece["num_images"] for piece in pieces)
  return {"mean": mean.tolist(), "std": std.tolist(), "num_images": num}
