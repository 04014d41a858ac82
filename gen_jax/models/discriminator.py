"""Patch discriminator: scores how real each part of an image is.

Source: Isola et al. 2017 (arXiv:1611.07004) section 3.2, with GroupNorm.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import ranges
from gen_jax.nn import linear, norms
from gen_jax.types import Array, InputError


@dataclasses.dataclass(frozen=True)
class Config:
  """Hyper-parameters.

  Attributes:
    image_channels: C of the images.
    width: channels of the first layer; each further layer doubles them.
    num_layers: each halves H and W.
    num_groups: of GroupNorm.
    dtype: of activations; parameters are float32.
  """

  image_channels: ranges.Size = 3
  width: ranges.Size = 32
  num_layers: ranges.Levels = 3
  num_groups: ranges.Size = 8
  dtype: str = "float32"

  def __post_init__(self):
    ranges.check(self)
    if self.width % self.num_groups:
      raise InputError(
        f"discriminator width={self.width} must be divisible by"
        f" num_groups={self.num_groups}"
      )


class Discriminator(nn.Module):
  """See the module's docstring."""

  config: Config

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, list[Array]]:
    """[B, H, W, C] -> scores float32 [B, h, w], high for real, and each layer's output.

    h = H / 2 ** num_layers.
    """
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    h, features = x.astype(dtype), []
    for i in range(cfg.num_layers):
      axes = ("image" if i == 0 else "conv_in", "conv_out")
      conv = linear.conv(
        cfg.width * 2**i, axes, name=f"down_{i}", window=4, stride=2, padding=(1, 1),
        dtype=dtype,
      )  # fmt: skip
      h = conv(h)
      if i > 0:
        h = norms.GroupNorm(cfg.num_groups, name=f"norm_{i}")(h)
      h = jax.nn.leaky_relu(h, 0.2)
      features.append(h)
    scores = linear.conv(1, ("conv_in", "image"), name="out", dtype=dtype)(h)
    return scores[..., 0].astype(jnp.float32), features
