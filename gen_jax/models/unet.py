"""UNet: a noisy image, a time and text states in, the network's target out.

Down the resolutions and up again with skip connections; every residual block hears the
time, and at the chosen levels a spatial transformer lets pixels see each other and the
caption.

Sources: Ho et al. 2020 (arXiv:2006.11239) appendix B; Rombach et al. 2022 (2112.10752)
appendix E.2.1.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import sharding
from gen_jax.nn import attention, embed, linear, mlp, norms
from gen_jax.types import Array, InputError


@dataclasses.dataclass(frozen=True)
class Config:
  """Hyper-parameters.

  Attributes:
    image_channels: C of input and output.
    width: channels at full resolution.
    multipliers: channels of each level in units of `width`; a level halves the side.
    num_blocks: residual blocks per level.
    attention_levels: levels (0 = full resolution) with a spatial transformer.
    num_heads: heads of its attention.
    num_groups: of GroupNorm; must divide every level's channels.
    dropout: drop_prob in residual blocks.
    dtype: of activations; parameters are float32.
  """

  image_channels: int
  width: int
  multipliers: tuple[int, ...]
  num_blocks: int
  attention_levels: tuple[int, ...]
  num_heads: int
  num_groups: int = 32
  dropout: float = 0.0
  dtype: str = "float32"

  def __post_init__(self):
    for multiplier in self.multipliers:
      channels = self.width * multiplier
      for name in ("num_groups", "num_heads"):
        divisor = getattr(self, name)
        if channels % divisor:
          raise InputError(
            f"UNet width={self.width} x {multiplier} must be divisible by"
            f" {name}={divisor}; try width={-(-self.width // divisor) * divisor}"
          )
    for level in self.attention_levels:
      if not 0 <= level < len(self.multipliers):
        raise InputError(
          f"UNet attention_levels has {level}; levels are counted from 0 and there are"
          f" {len(self.multipliers)}"
        )


def _constrain(x: Array) -> Array:
  return sharding.constrain(x, "batch", "space", "space", "act_channels")


class ResBlock(nn.Module):
  """Two convolutions and a shortcut, with the time added in between."""

  channels: int
  config: Config

  @nn.compact
  def __call__(self, x: Array, time: Array, train: bool) -> Array:
    """x [B, H, W, C], time [B, 4 width] -> [B, H, W, channels]."""
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    norm = functools.partial(norms.GroupNorm, cfg.num_groups)
    h = jax.nn.silu(norm(name="norm_in")(x))
    h = linear.conv(self.channels, name="conv_in", dtype=dtype)(h)
    shift = linear.dense(self.channels, ("embed", "mlp"), name="time", dtype=dtype)(
      jax.nn.silu(time)
    )
    h = h + shift[:, None, None, :]
    h = jax.nn.silu(norm(name="norm_out")(h))
    h = nn.Dropout(cfg.dropout, deterministic=not train)(h)
    h = linear.conv(
      self.channels, name="conv_out", init=linear.fan_in(0.0), dtype=dtype
    )(h)
    if x.shape[-1] != self.channels:
      x = linear.conv(self.channels, name="shortcut", window=1, dtype=dtype)(x)
    return _constrain(x + h)


class SpatialTransformer(nn.Module):
  """Self-attention over pixels, cross-attention to the text, feed-forward; residual."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, states: Array | None, mask: Array | None) -> Array:
    """x [B, H, W, C], states [B, S, D], mask bool [B, S] -> [B, H, W, C]."""
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    batch_size, height, width, channels = x.shape
    attend = functools.partial(
      attention.Attention,
      num_heads=cfg.num_heads,
      head_dim=channels // cfg.num_heads,
      dtype=dtype,
    )
    h = norms.GroupNorm(cfg.num_groups, name="norm")(x)
    h = h.reshape(batch_size, height * width, channels)
    h = linear.dense(channels, ("mlp", "embed"), name="proj_in", dtype=dtype)(h)
    y, _ = attend(name="self_attention")(norms.LayerNorm(name="self_norm")(h))
    h = h + y
    if states is not None:
      y, _ = attend(name="cross_attention")(
        norms.LayerNorm(name="cross_norm")(h), states, mask=mask[:, None, None, :]
      )
      h = h + y
    h = h + mlp.MLP(4 * channels, dtype=dtype, name="mlp")(
      norms.LayerNorm(name="mlp_norm")(h)
    )
    h = linear.dense(
      channels, ("embed", "mlp"), name="proj_out", init=linear.fan_in(0.0), dtype=dtype
    )(h)
    return _constrain(x + h.reshape(x.shape))


class UNet(nn.Module):
  """See the module's docstring."""

  config: Config

  @nn.compact
  def __call__(
    self,
    x: Array,
    t: Array,
    states: Array | None = None,
    mask: Array | None = None,
    *,
    train: bool = False,
  ) -> Array:
    """Predicts the target the network is trained on; zero at initialisation.

    Args:
      x: [B, H, W, C], H and W divisible by 2 ** (number of levels - 1).
      t: float32 [B] in [0, 1]; 0 is clean.
      states: [B, S, D] text states, or None for an unconditional model.
      mask: bool [B, S], False at padding.
      train: apply dropout (needs the rng 'dropout').

    Returns:
      float32 [B, H, W, C].
    """
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    levels = len(cfg.multipliers)
    if x.shape[1] % 2 ** (levels - 1) or x.shape[2] % 2 ** (levels - 1):
      raise InputError(
        f"UNet with {levels} levels needs sides divisible by {2 ** (levels - 1)}, got"
        f" {x.shape[1]}x{x.shape[2]}; change image_size or multipliers"
      )
    # Published UNets count time in steps of 1/1000.
    time = embed.sinusoids(1000.0 * t, embed.frequencies(cfg.width)).astype(dtype)
    time = linear.dense(4 * cfg.width, ("mlp", "embed"), name="time_in", dtype=dtype)(
      time
    )
    time = linear.dense(4 * cfg.width, ("embed", "mlp"), name="time_out", dtype=dtype)(
      jax.nn.silu(time)
    )

    def stage(h, name, level):
      channels = cfg.width * cfg.multipliers[level]
      h = ResBlock(channels, cfg, name=name)(h, time, train)
      if level in cfg.attention_levels:
        h = SpatialTransformer(cfg, name=f"{name}_transformer")(h, states, mask)
      return h

    h = linear.conv(cfg.width, ("image", "conv_out"), name="conv_in", dtype=dtype)(
      x.astype(dtype)
    )
    skips = [h]
    for level in range(levels):
      for i in range(cfg.num_blocks):
        h = stage(h, f"down_{level}_{i}", level)
        skips.append(h)
      if level < levels - 1:
        h = linear.conv(h.shape[-1], name=f"down_{level}", stride=2, dtype=dtype)(h)
        skips.append(h)

    channels = cfg.width * cfg.multipliers[-1]
    h = ResBlock(channels, cfg, name="middle_in")(h, time, train)
    h = SpatialTransformer(cfg, name="middle_transformer")(h, states, mask)
    h = ResBlock(channels, cfg, name="middle_out")(h, time, train)

    for level in reversed(range(levels)):
      for i in range(cfg.num_blocks + 1):
        h = jnp.concatenate([h, skips.pop()], -1)
        h = stage(h, f"up_{level}_{i}", level)
      if level > 0:
        h = jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
        h = linear.conv(h.shape[-1], name=f"up_{level}", dtype=dtype)(h)

    h = jax.nn.silu(norms.GroupNorm(cfg.num_groups, name="norm_out")(h))
    h = linear.conv(
      cfg.image_channels,
      ("conv_in", "image"),
      name="conv_out",
      init=linear.fan_in(0.0),
      dtype=dtype,
    )(h)
    return h.astype(jnp.float32)
