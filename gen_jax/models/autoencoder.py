"""KL autoencoder of latent diffusion.

    encode  x [B, H, W, C] -> Posterior, mean and std [B, h, w, Z] each
    decode  z [B, h, w, Z] -> x [B, H, W, C]         h = H / 2 ** (levels - 1)

Source: Rombach et al. 2022 (arXiv:2112.10752) appendix G; Esser et al. 2021
(2012.09841) table 7.
"""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import ranges
from gen_jax.nn import attention, linear, norms, spatial
from gen_jax.types import Array, InputError


class Posterior(NamedTuple):
  """The diagonal Gaussian q(z | x); float32 [B, h, w, Z] each."""

  mean: Array
  std: Array


@dataclasses.dataclass(frozen=True)
class Config:
  """Hyper-parameters.

  Attributes:
    image_channels: C of the images.
    latent_channels: Z.
    width: channels at full resolution.
    multipliers: channels of each level in units of `width`; a level halves the side.
    num_blocks: residual blocks per level of the encoder; the decoder has one more.
    num_groups: of GroupNorm; must divide every level's channels.
    middle_attention: self-attention at the smallest level.
    attention_impl: how it is computed, of `attention` or `kernels`.
    dtype: of activations; parameters are float32.
  """

  image_channels: ranges.Size
  latent_channels: ranges.Size
  width: ranges.Size
  multipliers: tuple[ranges.Size, ...]
  num_blocks: ranges.Blocks
  num_groups: ranges.Size = 32
  middle_attention: bool = True
  attention_impl: attention.Attend = attention.attend
  dtype: str = "float32"

  def __post_init__(self):
    ranges.check(self)
    for multiplier in self.multipliers:
      if self.width * multiplier % self.num_groups:
        raise InputError(
          f"autoencoder width={self.width} x {multiplier} must be divisible by"
          f" num_groups={self.num_groups}"
        )

  @property
  def factor(self) -> int:
    """H / h."""
    return 2 ** (len(self.multipliers) - 1)


def check_sides(x: Array, factor: int) -> None:
  """Raises InputError unless `factor` divides H and W of images [B, H, W, C]."""
  if x.shape[1] % factor or x.shape[2] % factor:
    raise InputError(
      f"the autoencoder needs sides divisible by {factor}, got"
      f" {x.shape[1]}x{x.shape[2]}; change image_size or its levels"
    )


def _block(cfg: Config, x: Array, channels: int, name: str) -> Array:
  dtype = jnp.dtype(cfg.dtype)
  return spatial.ResBlock(channels, cfg.num_groups, 1e-6, dtype=dtype, name=name)(x)


def _middle(cfg: Config, x: Array) -> Array:
  x = _block(cfg, x, x.shape[-1], "middle_in")
  if cfg.middle_attention:
    dtype = jnp.dtype(cfg.dtype)
    x = spatial.SelfAttention(
      1,
      cfg.num_groups,
      dtype,
      attention_impl=cfg.attention_impl,
      name="middle_attention",
    )(x)
  return _block(cfg, x, x.shape[-1], "middle_out")


def _out(cfg: Config, x: Array, channels: int) -> Array:
  x = jax.nn.silu(norms.GroupNorm(cfg.num_groups, 1e-6, name="norm_out")(x))
  dtype = jnp.dtype(cfg.dtype)
  return linear.conv(channels, ("conv_in", "image"), name="conv_out", dtype=dtype)(x)


class Encoder(nn.Module):
  """x [B, H, W, C] -> features of the posterior, [B, h, w, 2 Z]."""

  config: Config

  @nn.compact
  def __call__(self, x: Array) -> Array:
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    check_sides(x, cfg.factor)
    h = linear.conv(cfg.width, ("image", "conv_out"), name="conv_in", dtype=dtype)(
      x.astype(dtype)
    )
    for level, multiplier in enumerate(cfg.multipliers):
      for i in range(cfg.num_blocks):
        h = _block(cfg, h, cfg.width * multiplier, f"down_{level}_{i}")
      if level < len(cfg.multipliers) - 1:
        # Published weights were trained with padding only below and to the right.
        h = spatial.half(h, name=f"down_{level}", dtype=dtype, padding=(0, 1))
    return _out(cfg, _middle(cfg, h), 2 * cfg.latent_channels)


class Decoder(nn.Module):
  """z [B, h, w, Z] -> x [B, H, W, C]."""

  config: Config

  @nn.compact
  def __call__(self, z: Array) -> Array:
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    width = cfg.width * cfg.multipliers[-1]
    h = linear.conv(width, ("image", "conv_out"), name="conv_in", dtype=dtype)(z)
    h = _middle(cfg, h)
    for level in reversed(range(len(cfg.multipliers))):
      for i in range(cfg.num_blocks + 1):
        h = _block(cfg, h, cfg.width * cfg.multipliers[level], f"up_{level}_{i}")
      if level > 0:
        h = spatial.double(h, name=f"up_{level}", dtype=dtype)
    return _out(cfg, h, cfg.image_channels)


class Autoencoder(nn.Module):
  """See the module's docstring."""

  config: Config

  is_stochastic = True

  def setup(self):
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    self.encoder, self.decoder = Encoder(cfg), Decoder(cfg)
    point = functools.partial(
      linear.conv, axes=("image", "image"), name=None, window=1, dtype=dtype
    )
    self.to_posterior = point(2 * cfg.latent_channels)
    self.from_latent = point(cfg.latent_channels)

  def encode(self, x: Array) -> Posterior:
    """[B, H, W, C], about [-1, 1] -> the posterior of its latent."""
    mean, logvar = jnp.split(
      self.to_posterior(self.encoder(x)).astype(jnp.float32), 2, -1
    )
    return Posterior(mean, jnp.exp(0.5 * jnp.clip(logvar, -30.0, 20.0)))

  def decode(self, z: Array) -> Array:
    """[B, h, w, Z] -> float32 [B, H, W, C], about [-1, 1]."""
    z = self.from_latent(z.astype(jnp.dtype(self.config.dtype)))
    return self.decoder(z).astype(jnp.float32)

  def __call__(self, x: Array) -> Array:
    """Reconstructs the image from the posterior's mean."""
    return self.decode(self.encode(x).mean)
