"""Text encoder: caption tokens in, one state per token out, for cross-attention.

A small bidirectional transformer that is trained with the network it conditions; or
CLIP's, causal, whose padding is seen like any token.

Source: Radford et al. 2021 (arXiv:2103.00020) section 2.4 for the causal one.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from gen_jax import ranges
from gen_jax.nn import attention, block, embed, mlp, norms
from gen_jax.types import Array, InputError, States


@dataclasses.dataclass(frozen=True)
class Config:
  """Hyper-parameters; names as in `transformer.Config`, and

  Attributes:
    is_causal: a token sees those before it; the network sees all S, padding included.
    mlp_width: None is 4 width.
  """

  vocab_size: ranges.Vocabulary
  max_length: ranges.Size
  num_layers: ranges.Layers
  width: ranges.Size
  num_heads: ranges.Size
  mlp_width: ranges.Size | None = None
  activation: Callable[[Array], Array] = mlp.gelu
  position: Callable[..., nn.Module] | None = embed.LearnedPositions
  rotary: Callable[[Array, Array], Array] | None = None
  is_causal: bool = False
  dropout: ranges.ProperFraction = 0.0
  dtype: str = "float32"

  def __post_init__(self):
    ranges.check(self)
    if self.width % self.num_heads:
      raise InputError(
        f"text encoder width={self.width} must be divisible by"
        f" num_heads={self.num_heads}"
      )
    head_dim = self.width // self.num_heads
    embed.check_pairs("text encoder", self.width, head_dim, self.position, self.rotary)


class TextEncoder(nn.Module):
  """See the module's docstring."""

  config: Config

  @nn.compact
  def __call__(self, tokens: Array, mask: Array, *, train: bool = False) -> States:
    """Encodes captions.

    Args:
      tokens: int [B, S].
      mask: bool [B, S], False at padding, which no token sees.
      train: apply dropout (needs the rng 'dropout').

    Returns:
      States with tokens [B, S, D]; no mask where padding is seen as well.
    """
    cfg = self.config
    dtype = jnp.dtype(cfg.dtype)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    x = embed.Embed(cfg.vocab_size, cfg.width, dtype=dtype, name="embed")(tokens)
    x = embed.placed(x, positions, cfg.position, cfg.max_length)
    make_attention = functools.partial(
      attention.Attention,
      num_heads=cfg.num_heads,
      head_dim=cfg.width // cfg.num_heads,
      rotary=cfg.rotary,
      dtype=dtype,
    )
    make_mlp = functools.partial(
      mlp.MLP,
      hidden=cfg.mlp_width or 4 * cfg.width,
      activation=cfg.activation,
      dtype=dtype,
    )
    kept = None if cfg.is_causal else mask
    if kept is None:
      seen = attention.Mask(is_causal=True)
    else:
      seen = attention.Mask(kept[:, None, None, :])
    for i in range(cfg.num_layers):
      x, _ = block.Block(
        make_attention, make_mlp, norms.LayerNorm, cfg.dropout, name=f"block_{i}"
      )(x, mask=seen, positions=positions, train=train)
    return States(norms.LayerNorm(name="final_norm")(x), kept)
