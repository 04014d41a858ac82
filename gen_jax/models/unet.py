"""UNet: a noisy image, a time and what it is conditioned on in, the target out.

Down the resolutions and up again with skip connections. Every residual block is
conditioned on the time embedding; at the chosen levels pixels attend to each other and
to the caption.

Sources: Ho et al. 2020 (arXiv:2006.11239) appendix B; Rombach et al. 2022 (2112.10752)
appendix E.2.1.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import ranges
from gen_jax.nn import attention, block, embed, linear, norms, spatial, widths
from gen_jax.types import UNCONDITIONAL, Array, InputError, States


@dataclasses.dataclass(frozen=True)
class Config:
  """Hyper-parameters.

  Attributes:
    image_channels: C of the image and of the output.
    width: channels at full resolution.
    multipliers: channels of each level in units of `width`; a level halves the side.
    num_blocks: residual blocks per level.
    attention_levels: levels (0 = full resolution) with attention; the middle has it.
    num_heads: heads of the attention ...
    head_dim: ... or channels of each; one of the two.
    attention: constructor of what is at these levels.
    num_groups: of GroupNorm; must divide every level's channels.
    eps: of GroupNorm in residual blocks.
    dropout: drop_prob in residual blocks.
    extra_channels: more channels of the input, that condition it: a mask, an image.
    timestep_offset: added to 1000 t; -1 where a published chain counts steps from 0.
    remat: policy that says what of a block is kept for the backward pass; None keeps
      all.
    base_width: width of the model whose settings are kept, by muP: see `nn.widths`;
      None: the standard parametrisation.
    dtype: of activations; parameters are float32.
  """

  image_channels: ranges.Size
  width: ranges.Size
  multipliers: tuple[ranges.Size, ...]
  num_blocks: ranges.Blocks
  attention_levels: tuple[ranges.Whole, ...]
  num_heads: ranges.Size | None = None
  head_dim: ranges.Size | None = None
  attention: Callable[..., nn.Module] = spatial.SpatialTransformer
  num_groups: ranges.Size = 32
  eps: ranges.PositiveConstant = 1e-5
  dropout: ranges.ProperFraction = 0.0
  extra_channels: ranges.Whole = 0
  timestep_offset: ranges.Constant = 0.0
  remat: Callable[..., bool] | None = None
  base_width: ranges.Size | None = None
  dtype: str = "float32"

  params_name: ClassVar[str] = "unet"  # among a task's parameters
  stem: ClassVar[str] = "conv_in"  # the layer that takes the image

  def __post_init__(self):
    ranges.check(self)
    if (self.num_heads is None) == (self.head_dim is None):
      raise InputError(
        "UNet needs one of num_heads and head_dim; set the other to None"
      )
    for multiplier in self.multipliers:
      channels = self.width * multiplier
      for name in ("num_groups", "num_heads", "head_dim"):
        divisor = getattr(self, name)
        if divisor and channels % divisor:
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
    if self.base_width is not None and self.width_ratio != 1.0:
      dataclasses.replace(self, **self.at_width(self.base_width))

  @property
  def width_ratio(self) -> float:
    """m of `nn.widths`."""
    return widths.ratio("UNet", self.width, self.base_width)

  def at_width(self, width: int) -> dict[str, Any]:
    """Keys that make this the standard model of another width."""
    return {"width": width, "base_width": None}

  @property
  def vector_width(self) -> int:
    """D of `States.vector`."""
    return 4 * self.width

  @property
  def has_exact_attention(self) -> bool:
    """See `attention.is_exact`."""
    return attention.is_exact(self.attention(num_heads=1, num_groups=1).attention_impl)

  def check_side(self, height: int, width: int) -> None:
    """Raises InputError for an image that the levels cannot halve."""
    unit = 2 ** (len(self.multipliers) - 1)
    if height % unit or width % unit:
      raise InputError(
        f"UNet with {len(self.multipliers)} levels needs sides divisible by {unit}, got"
        f" {height}x{width}; change image_size or multipliers"
      )


class UNet(nn.Module):
  """See the module's docstring."""

  config: Config

  @nn.compact
  def __call__(
    self, x: Array, t: Array, states: States = UNCONDITIONAL, *, train: bool = False
  ) -> Array:
    """Predicts the target the network is trained on; zero at initialisation.

    Args:
      x: [B, H, W, C + extra], H and W divisible by 2 ** (number of levels - 1).
      t: float32 [B] in [0, 1]; 0 is clean.
      states: `tokens` are for cross-attention, `vector` [B, 4 width] is added to the
        time embedding.
      train: apply dropout (needs the rng 'dropout').

    Returns:
      float32 [B, H, W, C].
    """
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    cfg.check_side(*x.shape[1:3])
    levels = len(cfg.multipliers)
    time = self._time_embedding(t)
    if states.vector is not None:
      time = time + states.vector.astype(dtype)

    residual = functools.partial(self._residual, time=time, train=train)
    attend = functools.partial(self._attend, states=states)

    def stage(h, name, level):
      h = residual(h, cfg.width * cfg.multipliers[level], name)
      return attend(h, f"{name}_transformer") if level in cfg.attention_levels else h

    x = x.astype(dtype)
    h = linear.conv(cfg.width, ("image", "conv_out"), name="conv_in", dtype=dtype)(x)
    skips = [h]
    for level in range(levels):
      for i in range(cfg.num_blocks):
        h = stage(h, f"down_{level}_{i}", level)
        skips.append(h)
      if level < levels - 1:
        h = spatial.half(h, name=f"down_{level}", dtype=dtype)
        skips.append(h)

    h = residual(h, h.shape[-1], "middle_in")
    h = attend(h, "middle_transformer")
    h = residual(h, h.shape[-1], "middle_out")

    for level in reversed(range(levels)):
      for i in range(cfg.num_blocks + 1):
        h = jnp.concatenate([h, skips.pop()], -1)
        h = stage(h, f"up_{level}_{i}", level)
      if level > 0:
        h = spatial.double(h, name=f"up_{level}", dtype=dtype)

    h = jax.nn.silu(norms.GroupNorm(cfg.num_groups, cfg.eps, name="norm_out")(h))
    h = linear.conv(
      cfg.image_channels,
      ("conv_in", "image"),
      name="conv_out",
      init=linear.fan_in(0.0),
      dtype=dtype,
    )(h)
    return h.astype(jnp.float32)

  def _residual(self, h, channels, name, *, time, train):
    """A residual block, conditioned on the time embedding."""
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    module = spatial.ResBlock(
      channels, cfg.num_groups, cfg.eps, cfg.dropout, train, dtype, name=name
    )
    return block.remat(block.call, cfg.remat)(module, h, time)

  def _attend(self, h, name, *, states):
    """Attention to other pixels, and to `states.tokens`."""
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    heads = cfg.num_heads or h.shape[-1] // cfg.head_dim
    # As many heads as the base's are larger ones.
    ratio = cfg.width_ratio if cfg.num_heads else 1.0
    scale = {} if ratio == 1.0 else {"query_scale": ratio**-0.5}
    module = cfg.attention(
      num_heads=heads, num_groups=cfg.num_groups, dtype=dtype, name=name, **scale
    )
    return block.remat(block.call, cfg.remat)(module, h, states.tokens, states.mask)

  def _time_embedding(self, t: Array) -> Array:
    """Embeds times [B] as [B, 4 width]."""
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    # Published UNets count time in steps of 1/1000.
    timestep = 1000.0 * t + cfg.timestep_offset
    # Inputs that do not grow: as many sinusoids as the base's.
    frequencies = embed.frequencies(cfg.base_width or cfg.width)
    time = embed.sinusoids(timestep, frequencies).astype(dtype)
    width = 4 * cfg.width
    time = linear.dense(width, ("embed", "mlp"), name="time_in", dtype=dtype)(time)
    time = jax.nn.silu(time)
    return linear.dense(width, ("mlp", "embed"), name="time_out", dtype=dtype)(time)
