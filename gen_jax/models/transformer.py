"""Decoder-only transformer: tokens in, the likelihood of every next token out.

embedding (+ positions) -> num_layers x [masked self-attention, feed-forward] -> norm
-> linear head. One Config spans the published families; what differs between them
(norm, positions, feed-forward) is passed in as constructors, not switched on names.

Sources: Vaswani et al. 2017 (arXiv:1706.03762); Radford et al. 2019 (GPT-2).
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import sharding
from gen_jax.nn import attention, block, embed, linear, mlp, norms
from gen_jax.types import Array, InputError


@dataclasses.dataclass(frozen=True)
class Config:
  """Hyper-parameters.

  Attributes:
    vocab_size: V.
    max_length: the longest sequence, prompt and continuation together, in tokens.
    num_layers: L.
    width: D.
    num_heads: N; D / N is the head size.
    num_kv_heads: K, dividing N; None is N.
    mlp_width: F; None is 4 D.
    norm: constructor of a normalisation, `norm(name=...)`.
    mlp: constructor of a feed-forward, `mlp(hidden=..., name=...)`.
    position: constructor of additive positions, or None.
    rotary: function that rotates queries and keys by position, or None.
    use_bias: biases on the linear maps.
    tied_head: the head is the transposed token embedding.
    dropout: drop_prob after embedding, attention and feed-forward.
    dtype: of activations; parameters are float32.
  """

  vocab_size: int
  max_length: int
  num_layers: int
  width: int
  num_heads: int
  num_kv_heads: int | None = None
  mlp_width: int | None = None
  norm: Callable[..., nn.Module] = norms.LayerNorm
  mlp: Callable[..., nn.Module] = mlp.MLP
  position: Callable[..., nn.Module] | None = embed.LearnedPositions
  rotary: Callable[[Array, Array], Array] | None = None
  use_bias: bool = True
  tied_head: bool = True
  dropout: float = 0.0
  dtype: str = "float32"

  def __post_init__(self):
    if self.width % self.num_heads:
      raise InputError(
        f"transformer width={self.width} must be divisible by"
        f" num_heads={self.num_heads}; try width={self.num_heads * 64}"
      )
    if self.num_kv_heads and self.num_heads % self.num_kv_heads:
      raise InputError(
        f"transformer num_heads={self.num_heads} must be divisible by"
        f" num_kv_heads={self.num_kv_heads}"
      )

  @property
  def head_dim(self) -> int:
    return self.width // self.num_heads


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """What decoding remembers: keys and values per layer, and the lengths so far.

  Attributes:
    layers: L times KV of [B, S, K, Dh].
    length: int32 [B], tokens of each row that are final.
  """

  layers: tuple[attention.KV, ...]
  length: Array


def init_cache(config: Config, batch_size: int, num_slots: int) -> Cache:
  """An empty cache for sequences of at most `num_slots` tokens."""
  heads = config.num_kv_heads or config.num_heads
  shape = (batch_size, num_slots, heads, config.head_dim)
  zeros = lambda: jnp.zeros(shape, config.dtype)  # noqa: E731
  layers = tuple(attention.KV(zeros(), zeros()) for _ in range(config.num_layers))
  return Cache(layers, jnp.zeros((batch_size,), jnp.int32))


class Transformer(nn.Module):
  """See the module's docstring."""

  config: Config

  @nn.compact
  def __call__(
    self, tokens: Array, cache: Cache | None = None, *, train: bool = False
  ) -> tuple[Array, Cache | None]:
    """Scores every next token.

    Args:
      tokens: int [B, T].
      cache: None to see `tokens` alone; else what came before them, row by row.
      train: apply dropout (needs the rng 'dropout').

    Returns:
      logits float32 [B, T, V] (of the token after each one), and the cache with
      `tokens` written in and its lengths advanced by T.
    """
    cfg = self.config
    dtype = jnp.dtype(cfg.dtype)
    length = tokens.shape[1]
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    if cache is not None:
      positions = positions + cache.length[:, None]
    slots = length if cache is None else cache.layers[0].key.shape[1]
    mask = attention.causal(positions, slots)

    embedding = embed.Embed(cfg.vocab_size, cfg.width, dtype=dtype, name="embed")
    x = embedding(tokens)
    if cfg.position is not None:
      position = cfg.position(
        max_length=cfg.max_length, width=cfg.width, name="position"
      )
      x = x + position(positions).astype(dtype)
    x = nn.Dropout(cfg.dropout, deterministic=not train)(x)
    x = sharding.constrain(x, "batch", "length", "act_embed")

    # Residual branches start 1/sqrt(2L) smaller (Radford et al. 2019, section 2.3).
    init, out_init = (
      linear.normal(0.02),
      linear.normal(0.02 / (2 * cfg.num_layers) ** 0.5),
    )
    common = dict(use_bias=cfg.use_bias, init=init, out_init=out_init, dtype=dtype)
    make_attention = functools.partial(
      attention.Attention,
      num_heads=cfg.num_heads,
      num_kv_heads=cfg.num_kv_heads,
      head_dim=cfg.head_dim,
      rotary=cfg.rotary,
      **common,
    )
    make_mlp = functools.partial(
      cfg.mlp, hidden=cfg.mlp_width or 4 * cfg.width, **common
    )
    layers = []
    for i in range(cfg.num_layers):
      x, kv = block.Block(
        make_attention, make_mlp, cfg.norm, cfg.dropout, name=f"block_{i}"
      )(
        x,
        mask=mask,
        positions=positions,
        cache=None if cache is None else cache.layers[i],
        train=train,
      )
      layers.append(kv)

    x = cfg.norm(name="final_norm")(x)
    if cfg.tied_head:
      logits = embedding.attend(x)
    else:
      logits = linear.dense(
        cfg.vocab_size,
        ("embed", "vocab"),
        name="head",
        use_bias=False,
        init=init,
        dtype=dtype,
      )(x)
    logits = sharding.constrain(logits, "batch", "length", "act_vocab")
    if cache is not None:
      cache = Cache(tuple(layers), cache.length + length)
    # Softmax and loss want float32: bf16 has 8 bits for a sum over V terms.
    return logits.astype(jnp.float32), cache
