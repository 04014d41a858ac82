"""Text encoder: caption tokens in, one state per token out, the condition of a UNet.

A small bidirectional transformer, trained along with the UNet it conditions.
"""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp

from gen_jax.nn import attention, block, embed, mlp, norms
from gen_jax.types import Array, InputError


@dataclasses.dataclass(frozen=True)
class Config:
  """Hyper-parameters; names as in `transformer.Config`."""

  vocab_size: int
  max_length: int
  num_layers: int
  width: int
  num_heads: int
  dropout: float = 0.0
  dtype: str = "float32"

  def __post_init__(self):
    if self.width % self.num_heads:
      raise InputError(
        f"text encoder width={self.width} must be divisible by"
        f" num_heads={self.num_heads}"
      )


class TextEncoder(nn.Module):
  """See the module's docstring."""

  config: Config

  @nn.compact
  def __call__(self, tokens: Array, mask: Array, *, train: bool = False) -> Array:
    """Encodes captions.

    Args:
      tokens: int [B, S].
      mask: bool [B, S], False at padding, which no token sees.
      train: apply dropout (needs the rng 'dropout').

    Returns:
      states [B, S, D].
    """
    cfg = self.config
    dtype = jnp.dtype(cfg.dtype)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    x = embed.Embed(cfg.vocab_size, cfg.width, dtype=dtype, name="embed")(tokens)
    x = x + embed.LearnedPositions(cfg.max_length, cfg.width, name="position")(
      positions
    ).astype(dtype)
    make_attention = functools.partial(
      attention.Attention,
      num_heads=cfg.num_heads,
      head_dim=cfg.width // cfg.num_heads,
      dtype=dtype,
    )
    make_mlp = functools.partial(mlp.MLP, hidden=4 * cfg.width, dtype=dtype)
    for i in range(cfg.num_layers):
      x, _ = block.Block(
        make_attention, make_mlp, norms.LayerNorm, cfg.dropout, name=f"block_{i}"
      )(x, mask=mask[:, None, None, :], train=train)
    return norms.LayerNorm(name="final_norm")(x)
