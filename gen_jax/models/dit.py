"""DiT: a transformer over patches of a noisy image, conditioned by adaptive LayerNorm.

    x [B, H, W, C] -> patches [B, T, D] + 2-D sinusoidal positions
      -> num_layers x block -> adaptive LayerNorm -> linear -> pixels [B, H, W, C]

Each block is adaLN-Zero: a linear map of the condition c = time (+ class) embedding
gives shift, scale and gate of attention and of the MLP,

    x = x + gate_1 attention((1 + scale_1) norm(x) + shift_1)
    x = x + gate_2 mlp((1 + scale_2) norm(x) + shift_2)

and starts at zero, so that every block starts as the identity.

Source: Peebles & Xie 2022 (arXiv:2212.09748) section 3.2. The dropout of labels is the
task's, not the network's.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import ranges, sharding
from gen_jax.nn import attention, block, embed, linear, mlp, norms, widths
from gen_jax.types import UNCONDITIONAL, Array, InputError, States

_EPS = 1e-6  # of every LayerNorm
_FREQUENCIES = 256  # numbers that describe the time to the first linear map


@dataclasses.dataclass(frozen=True)
class Config:
  """Hyper-parameters.

  Attributes:
    image_channels: C of the image (or latent) and of the output.
    image_size: height and width for which positions are counted from 0 to
      image_size / patch_size - 1; other sizes have them scaled into that interval.
    patch_size: height and width of a patch.
    width: D.
    num_layers: L.
    num_heads: N, dividing D.
    mlp_width: F; None is 4 D.
    learn_sigma: the last linear map has 2 C outputs, as the released models have; the
      second half, the variance of Nichol & Dhariwal 2021 (arXiv:2102.09672), is not
      returned and not trained.
    extra_channels: further channels of the input, for conditions such as a mask.
    max_period: of the time's sinusoids; 10000 ** (128 / 127) are those of diffusers.
    timestep_offset: added to 1000 t; -1 where published chains call their first noisy
      step 0.
    attention_impl: how attention is computed, of `attention` or `kernels`.
    remat: policy that says what of a block is kept for the backward pass; None keeps
      all.
    base_width: D of the model whose settings are kept, by muP: see `nn.widths`; its
      heads have this one's size; None: the standard parametrisation.
    dtype: of activations; parameters are float32.
  """

  image_channels: ranges.Size
  image_size: ranges.Size
  patch_size: ranges.Size
  width: ranges.Size
  num_layers: ranges.Layers
  num_heads: ranges.Size
  mlp_width: ranges.Size | None = None
  learn_sigma: bool = False
  extra_channels: ranges.Whole = 0
  max_period: ranges.PositiveConstant = 1e4
  timestep_offset: ranges.Constant = 0.0
  attention_impl: attention.Attend = attention.attend
  remat: Callable[..., bool] | None = None
  base_width: ranges.Size | None = None
  dtype: str = "float32"

  params_name: ClassVar[str] = "dit"  # among a task's parameters
  stem: ClassVar[str] = "patch_in"  # the layer that takes the image

  def __post_init__(self):
    ranges.check(self)
    if self.width % self.num_heads:
      raise InputError(
        f"DiT width={self.width} must be divisible by num_heads={self.num_heads}; try"
        f" width={-(-self.width // self.num_heads) * self.num_heads}"
      )
    if self.width % 4:
      raise InputError(
        f"DiT width={self.width} must be divisible by 4: sine and cosine of row and"
        f" column; try width={-(-self.width // 4) * 4}"
      )
    self.check_side(self.image_size, self.image_size)
    if self.base_width is not None and self.width_ratio != 1.0:
      dataclasses.replace(self, **self.at_width(self.base_width))

  @property
  def width_ratio(self) -> float:
    """m of `nn.widths`."""
    return widths.ratio("DiT", self.width, self.base_width)

  def at_width(self, width: int) -> dict[str, Any]:
    """Keys that make this the standard model of another width, heads of one size.

    Raises:
      InputError: a number would not be whole.
    """
    sizes = {"num_heads": self.num_heads, "mlp_width": self.mlp_width}
    keys = widths.scaled("DiT", width, self.width, **sizes)
    return {**keys, "width": width, "base_width": None}

  @property
  def vector_width(self) -> int:
    """D of `States.vector`."""
    return self.width

  @property
  def has_exact_attention(self) -> bool:
    """See `attention.is_exact`."""
    return attention.is_exact(self.attention_impl)

  def check_side(self, height: int, width: int) -> None:
    """Raises InputError for an image that cannot be cut into patches."""
    if height % self.patch_size or width % self.patch_size:
      raise InputError(
        f"DiT with patch_size={self.patch_size} needs sides divisible by it, got"
        f" {height}x{width}; change image_size or patch_size"
      )


def positions(height: int, width: int, side: int, dim: int) -> Array:
  """Sinusoids of column and row of each patch, float32 [height width, dim].

  The first half of the channels is of the column, the second of the row; sines come
  before cosines. Rows and columns are scaled to [0, side).

  Args:
    height, width: of the grid of patches.
    side: height and width of the grid for which positions are whole numbers.
    dim: divisible by 4.
  """
  frequencies = embed.frequencies(dim // 2)

  def along(num):  # [num, dim / 2]
    at = jnp.arange(num) * (side / num)
    cos, sin = jnp.split(embed.sinusoids(at, frequencies), 2, -1)
    return jnp.concatenate([sin, cos], -1)

  shape = (height, width, dim // 2)
  columns = jnp.broadcast_to(along(width)[None], shape)
  rows = jnp.broadcast_to(along(height)[:, None], shape)
  return jnp.concatenate([columns, rows], -1).reshape(-1, dim)


def unpatchify(x: Array, height: int, width: int, patch_size: int) -> Array:
  """[B, height width, patch_size^2 C], row of the patch first -> [B, H, W, C]."""
  size, p = x.shape[0], patch_size
  x = x.reshape(size, height, width, p, p, -1)
  x = x.transpose(0, 1, 3, 2, 4, 5)  # [B, height, p, width, p, C]
  return x.reshape(size, height * p, width * p, -1)


def _modulated(x: Array, shift: Array, scale: Array) -> Array:
  """(1 + scale) norm(x) + shift; x [B, T, D], the others [B, D]."""
  y = norms.standardise(x, norms.over_channels, _EPS, True)
  scale, shift = (v[:, None].astype(jnp.float32) for v in (scale, shift))
  return ((1.0 + scale) * y + shift).astype(x.dtype)


def _modulation(condition: Array, num: int, dtype: jnp.dtype) -> list[Array]:
  """`num` vectors [B, D] of condition [B, D]; zero at initialisation."""
  width = condition.shape[-1]
  zero = linear.fan_in(0.0)
  out = linear.dense(
    num * width, ("embed", "mlp"), name="modulation", init=zero, dtype=dtype
  )(jax.nn.silu(condition))
  return jnp.split(out, num, -1)


class Block(nn.Module):
  """Attention and MLP, shifted, scaled and gated by the condition (adaLN-Zero)."""

  config: Config

  @nn.compact
  def __call__(self, x: Array, condition: Array) -> Array:
    """x [B, T, D], condition [B, D] -> [B, T, D]."""
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = _modulation(
      condition, 6, dtype
    )
    h, _ = attention.Attention(
      num_heads=cfg.num_heads,
      head_dim=cfg.width // cfg.num_heads,
      attention_impl=cfg.attention_impl,
      init=linear.fan_in(0.5),  # Xavier of queries, keys and values as one matrix
      out_init=linear.fan_in(),
      dtype=dtype,
      name="attention",
    )(_modulated(x, shift_1, scale_1))
    x = x + gate_1[:, None] * h
    xavier = nn.initializers.xavier_uniform()
    h = mlp.MLP(
      hidden=cfg.mlp_width or 4 * cfg.width,
      init=xavier,
      out_init=xavier,
      dtype=dtype,
      name="mlp",
    )(_modulated(x, shift_2, scale_2))
    return sharding.constrain(x + gate_2[:, None] * h, "batch", "length", "act_embed")


class DiT(nn.Module):
  """See the module's docstring."""

  config: Config

  @nn.compact
  def __call__(
    self, x: Array, t: Array, states: States = UNCONDITIONAL, *, train: bool = False
  ) -> Array:
    """Predicts the target that the network is trained on; zero at initialisation.

    Args:
      x: [B, H, W, C + extra], H and W divisible by patch_size.
      t: float32 [B] in [0, 1]; 0 is clean.
      states: `vector` [B, D] is added to the time embedding.
      train: changes nothing, there is no dropout.

    Returns:
      float32 [B, H, W, C].

    Raises:
      InputError: states with tokens, which nothing here attends to.
    """
    del train
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    if states.tokens is not None:
      raise InputError(
        "a DiT has no cross-attention for text; take conditioning=labels or none, or"
        " network=unet"
      )
    cfg.check_side(*x.shape[1:3])
    height, width = (side // cfg.patch_size for side in x.shape[1:3])
    condition = self._time_embedding(t)
    if states.vector is not None:
      condition = condition + states.vector.astype(dtype)

    x = self._patches(x.astype(dtype))
    at = positions(height, width, cfg.image_size // cfg.patch_size, cfg.width)
    x = x + jnp.broadcast_to(at.astype(dtype), x.shape)
    x = sharding.constrain(x, "batch", "length", "act_embed")
    apply = block.remat(block.call, cfg.remat)
    for i in range(cfg.num_layers):
      x = apply(Block(cfg, name=f"block_{i}"), x, condition)

    return self._image(x, condition, height, width)

  def _patches(self, x: Array) -> Array:
    """[B, H, W, C] -> [B, T, D], without positions."""
    cfg, p = self.config, self.config.patch_size
    fan = p * p * x.shape[-1]
    x = linear.conv(
      cfg.width,
      ("image", "embed"),
      name="patch_in",
      window=p,
      stride=p,
      padding=(0, 0),
      # Xavier of a linear map; its inputs do not grow with the width.
      init=linear.fan_in(2 * fan / (fan + (cfg.base_width or cfg.width))),
      dtype=x.dtype,
    )(x)
    return x.reshape(x.shape[0], -1, cfg.width)

  def _image(self, x: Array, condition: Array, height: int, width: int) -> Array:
    """[B, T, D] -> float32 [B, H, W, C]."""
    cfg = self.config
    channels = cfg.image_channels * (1 + cfg.learn_sigma)
    x = _modulated(x, *_modulation(condition, 2, x.dtype))
    x = linear.dense(
      cfg.patch_size**2 * channels,
      ("embed", "image"),
      name="patch_out",
      init=linear.fan_in(0.0),
      dtype=x.dtype,
    )(x)
    x = unpatchify(x, height, width, cfg.patch_size)
    return x[..., : cfg.image_channels].astype(jnp.float32)

  def _time_embedding(self, t: Array) -> Array:
    """Times [B] -> [B, D]."""
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    timesteps = 1000.0 * t + cfg.timestep_offset
    frequencies = embed.frequencies(_FREQUENCIES, cfg.max_period)
    time = embed.sinusoids(timesteps, frequencies).astype(dtype)
    dense = functools.partial(linear.dense, cfg.width, dtype=dtype)
    init, inner = linear.normal(0.02), linear.normal(0.02 / cfg.width_ratio**0.5)
    time = dense(("embed", "mlp"), name="time_in", init=init)(time)
    return dense(("mlp", "embed"), name="time_out", init=inner)(jax.nn.silu(time))
