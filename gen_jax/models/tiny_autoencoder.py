"""TAESD: a small deterministic autoencoder without attention or norms.

    encode  x [B, H, W, C] -> the code, std 0       decode  z [B, h, w, Z] -> x
    h = H / 2 ** (num_levels - 1)

The released weights are distilled from Stable Diffusion's autoencoder; their codes are
its latents, already scaled to variance 1.

Source: github.com/madebyollin/taesd.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import ranges
from gen_jax.models import autoencoder
from gen_jax.nn import linear, spatial
from gen_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Config:
  """Hyper-parameters; the defaults are those of the release.

  Attributes:
    image_channels: C of the images.
    latent_channels: Z.
    width: channels of every level.
    num_levels: each but the first halves H and W.
    num_blocks: residual blocks per level; the first level has one.
    dtype: of activations; parameters are float32.
  """

  image_channels: ranges.Size = 3
  latent_channels: ranges.Size = 4
  width: ranges.Size = 64
  num_levels: ranges.Levels = 4
  num_blocks: ranges.Blocks = 3
  dtype: str = "float32"

  def __post_init__(self) -> None:
    ranges.check(self)

  @property
  def factor(self) -> int:
    """H / h."""
    return 2 ** (self.num_levels - 1)


class Block(nn.Module):
  """relu(x + three convolutions of x), at one width."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    h = x
    for name in ("conv_in", "conv", "conv_out"):
      h = linear.conv(x.shape[-1], name=name, dtype=self.dtype)(h)
      h = jax.nn.relu(h) if name != "conv_out" else h
    return spatial.constrain(jax.nn.relu(x + h))


def _blocks(cfg: Config, h: Array, stem: str, level: int) -> Array:
  for i in range(cfg.num_blocks if level else 1):
    h = Block(jnp.dtype(cfg.dtype), name=f"{stem}_{level}_{i}")(h)
  return h


class Encoder(nn.Module):
  """x [B, H, W, C] in [0, 1] -> [B, h, w, Z]."""

  config: Config

  @nn.compact
  def __call__(self, x: Array) -> Array:
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    autoencoder.check_sides(x, cfg.factor)
    h = linear.conv(cfg.width, ("image", "conv_out"), name="conv_in", dtype=dtype)(
      x.astype(dtype)
    )
    for level in range(cfg.num_levels):
      if level:
        h = spatial.half(h, name=f"down_{level}", dtype=dtype, use_bias=False)
      h = _blocks(cfg, h, "down", level)
    axes = ("conv_in", "image")
    return linear.conv(cfg.latent_channels, axes, name="conv_out", dtype=dtype)(h)


class Decoder(nn.Module):
  """z [B, h, w, Z] -> x [B, H, W, C], about [0, 1]."""

  config: Config

  @nn.compact
  def __call__(self, z: Array) -> Array:
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    h = 3.0 * jnp.tanh(z.astype(dtype) / 3.0)  # latents beyond 3 are outliers
    axes = ("image", "conv_out")
    h = jax.nn.relu(linear.conv(cfg.width, axes, name="conv_in", dtype=dtype)(h))
    for level in reversed(range(cfg.num_levels)):
      h = _blocks(cfg, h, "up", level)
      if level:
        h = spatial.double(h, name=f"up_{level}", dtype=dtype, use_bias=False)
    axes = ("conv_in", "image")
    return linear.conv(cfg.image_channels, axes, name="conv_out", dtype=dtype)(h)


class TinyAutoencoder(nn.Module):
  """See the module's docstring; images in and out are about [-1, 1]."""

  config: Config

  is_stochastic = False

  def setup(self):
    self.encoder, self.decoder = Encoder(self.config), Decoder(self.config)

  def encode(self, x: Array) -> autoencoder.Posterior:
    """[B, H, W, C], about [-1, 1] -> its code as mean, with std 0."""
    code = self.encoder(0.5 * x + 0.5).astype(jnp.float32)
    return autoencoder.Posterior(code, jnp.zeros_like(code))

  def decode(self, z: Array) -> Array:
    """[B, h, w, Z] -> float32 [B, H, W, C], about [-1, 1]."""
    return 2.0 * self.decoder(z).astype(jnp.float32) - 1.0

  def __call__(self, x: Array) -> Array:
    """Reconstructs the image."""
    return self.decode(self.encode(x).mean)
