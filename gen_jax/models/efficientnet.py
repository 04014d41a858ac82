"""Features of EfficientNet-lite0, an ImageNet network of 4.7M parameters.

Source: Tan & Le 2019 (arXiv:1905.11946); "lite" has no squeeze-and-excitation and
ReLU6 throughout.
"""

import jax
import jax.numpy as jnp

from gen_jax.nn import torch_layers
from gen_jax.types import Array

# Repeats, stride of the first block, whether blocks expand channels by six.
STAGES = (
  (1, 1, False),
  (2, 2, True),
  (2, 2, True),
  (3, 2, True),
  (3, 1, True),
  (4, 2, True),
  (1, 1, True),
)
SIDE = 224


def features(weights: torch_layers.Weights, images: Array) -> Array:
  """Images [B, H, W, 3] in 0 .. 255 -> float32 [B, 1280], its classifier's input.

  Images are resized to 224x224, bilinear, and scaled to about [-1, 1].
  """
  x = images.astype(jnp.float32)
  x = jax.image.resize(x, (len(x), SIDE, SIDE, 3), "linear")
  x = (x - 127.0) / 128.0

  def layer(x, name, norm, **how):
    x = torch_layers.conv(weights, name, x, **how)
    return torch_layers.batch_norm(weights, norm, x)

  x = jax.nn.relu6(layer(x, "_conv_stem", "_bn0", stride=2))
  index = 0
  for repeats, stride, expands in STAGES:
    for i in range(repeats):
      at, h = f"_blocks.{index}.", x
      if expands:
        h = jax.nn.relu6(layer(h, f"{at}_expand_conv", f"{at}_bn0"))
      how = {"stride": stride if i == 0 else 1, "groups": h.shape[-1]}
      h = jax.nn.relu6(layer(h, f"{at}_depthwise_conv", f"{at}_bn1", **how))
      h = layer(h, f"{at}_project_conv", f"{at}_bn2")
      x = h + x if h.shape == x.shape else h
      index += 1
  x = jax.nn.relu6(layer(x, "_conv_head", "_bn1"))
  return x.mean((1, 2))
