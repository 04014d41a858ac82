"""Decoder-only transformer: tokens to logits of every next token.

embedding (+ positions) -> num_layers x [masked self-attention, feed-forward] -> norm
-> linear head. One Config covers the published families; norm, positions and
feed-forward are passed in as constructors.

Sources: Vaswani et al. 2017 (arXiv:1706.03762); Radford et al. 2019 (GPT-2).
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import ranges, sharding
from gen_jax.nn import attention, block, embed, linear, mlp, norms, widths
from gen_jax.types import Array, InputError, Params, PyTree


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
    head_dim: Dh; None is D / N.
    mlp_width: F; None is 4 D.
    norm: constructor of a normalisation, `norm(name=...)`.
    mlp: constructor of a feed-forward, `mlp(hidden=..., name=...)`.
    position: constructor of additive positions, or None.
    rotary: function that rotates queries and keys by position, or None.
    use_bias: biases on the linear maps.
    tied_head: the head is the transposed token embedding.
    window: number of tokens that attention sees, itself included; None: all earlier.
    attention_impl: how attention is computed, of `attention` or `kernels`.
    dropout: rate after embedding, attention and feed-forward.
    scan_layers: scan one compiled layer over L stacked parameters, which compiles
      faster; else unroll L layers, which decodes faster.
    remat: which activations a layer keeps for its gradient, a policy of
      `jax.checkpoint_policies`; None keeps all.
    head_chunk: tokens whose logits exist at once in training, a divisor of T; or None.
    init_std: initial standard deviation of matrices and tables, by muP the base's.
    base_width: D of the model whose settings are kept, by muP: see `nn.widths`; None:
      the standard parametrisation.
    base_num_heads: N of that model; None: its heads have this one's size.
    dtype: of activations; parameters are float32.
  """

  vocab_size: ranges.Vocabulary
  max_length: ranges.Size
  num_layers: ranges.Layers
  width: ranges.Size
  num_heads: ranges.Size
  num_kv_heads: ranges.Size | None = None
  head_dim: ranges.Size | None = None
  mlp_width: ranges.Size | None = None
  norm: Callable[..., nn.Module] = norms.LayerNorm
  mlp: Callable[..., nn.Module] = mlp.MLP
  position: Callable[..., nn.Module] | None = embed.LearnedPositions
  rotary: Callable[[Array, Array], Array] | None = None
  use_bias: bool = True
  tied_head: bool = True
  window: ranges.Size | None = None
  attention_impl: attention.Attend = attention.attend
  dropout: ranges.ProperFraction = 0.0
  scan_layers: bool = False
  remat: Callable[..., bool] | None = None
  head_chunk: ranges.Size | None = None
  init_std: ranges.Deviation = 0.02
  base_width: ranges.Size | None = None
  base_num_heads: ranges.Size | None = None
  dtype: str = "float32"

  def __post_init__(self):
    ranges.check(self)
    if self.head_dim is None and self.width % self.num_heads:
      raise InputError(
        f"transformer width={self.width} must be divisible by"
        f" num_heads={self.num_heads}; try width={self.num_heads * 64}, or set head_dim"
      )
    if self.num_kv_heads and self.num_heads % self.num_kv_heads:
      raise InputError(
        f"transformer num_heads={self.num_heads} must be divisible by"
        f" num_kv_heads={self.num_kv_heads}"
      )
    embed.check_pairs(
      "transformer", self.width, self.dim_per_head, self.position, self.rotary
    )
    if self.base_width is None and self.base_num_heads is not None:
      raise InputError(
        f"transformer base_num_heads={self.base_num_heads} is of the model that"
        " base_width names; set both or neither"
      )
    if self.base_width is not None and self.width_ratio != 1.0:
      dataclasses.replace(self, **self.at_width(self.base_width))

  @property
  def dim_per_head(self) -> int:
    """Dh."""
    return self.head_dim or self.width // self.num_heads

  @property
  def width_ratio(self) -> float:
    """m of `nn.widths`."""
    return widths.ratio("transformer", self.width, self.base_width)

  @property
  def query_scale(self) -> float:
    """sqrt(head size of the base / Dh)."""
    heads = self.base_num_heads
    return (self.num_heads / heads / self.width_ratio) ** 0.5 if heads else 1.0

  def at_width(self, width: int) -> dict[str, Any]:
    """Keys that make this the standard model of another width.

    It has `base_num_heads` heads, or as many of this one's size as it takes.

    Raises:
      InputError: a number would not be whole.
    """
    scaled = functools.partial(widths.scaled, "transformer")
    heads, sizes = self.base_num_heads, {"num_kv_heads": self.num_kv_heads}
    if heads is None:
      keys = scaled(width, self.width, num_heads=self.num_heads, **sizes)
    else:
      keys = {"num_heads": heads, **scaled(heads, self.num_heads, **sizes)}
      inner = (width * self.num_heads, self.width * heads)
      keys |= scaled(*inner, head_dim=self.head_dim)
    keys |= scaled(width, self.width, mlp_width=self.mlp_width)
    return {**keys, "width": width, "base_width": None, "base_num_heads": None}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """The key-value cache of decoding.

  Attributes:
    layers: L times KV of [B, K, S, Dh].
    length: int32 [B], number of tokens of each sequence in the cache.
  """

  layers: tuple[attention.KV, ...]
  length: Array


def init_cache(config: Config, batch_size: int, num_slots: int) -> Cache:
  """An empty cache for sequences of at most `num_slots` tokens.

  With a window it has at most `window` slots.

  Raises:
    InputError: an attention whose result with a cache differs from that without.
  """
  heads = config.num_kv_heads or config.num_heads
  dim = config.dim_per_head
  if not attention.is_exact(config.attention_impl):
    _check_cached(config.attention_impl, config.num_heads, heads, dim, config.window)
  num_slots = min(num_slots, config.window or num_slots)
  shape = (batch_size, heads, num_slots, dim)
  layers = tuple(
    attention.KV(*(jnp.zeros(shape, config.dtype) for _ in attention.KV._fields))
    for _ in range(config.num_layers)
  )
  return Cache(layers, jnp.zeros((batch_size,), jnp.int32))


def _check_cached(
  attend: attention.Attend, num_heads: int, num_kv_heads: int, dim: int, window
) -> None:
  """Raises InputError unless `attend` has the same result with a cache as without.

  Tested on the last of six positions in a cache of eight slots or, with a window, on
  the first position that wraps around.
  """
  window = window and min(window, 4)
  num, num_slots = (window + 1, window) if window else (6, 8)
  with jax.ensure_compile_time_eval():
    query, key, value = (
      jax.random.normal(jax.random.key(i), (1, n, num, dim))
      for i, n in enumerate((num_heads, num_kv_heads, num_kv_heads))
    )
    query, new = jnp.swapaxes(query, 1, 2), attention.KV(key, value)
    alone = attend(query, new, attention.Mask(is_causal=True, window=window))
    cache = attention.tail_cache(new, jnp.array([num]), num_slots)
    mask = attention.cache_mask(jnp.array([[num - 1]]), num_slots, window)
    cached = attend(query[:, -1:], cache, mask)
    is_same = bool(jnp.allclose(cached, alone[:, -1:], rtol=1e-3, atol=1e-3))
  if not is_same:
    raise InputError(
      f"attention {getattr(attend, '__name__', attend)} has another result with a cache"
      " than in training: use mask.materialize for visible keys and mask.distances for"
      " positions, or declare it attention.exact"
    )


def _memory(
  window: int | None, cache: Cache, order: Array, at: Array | None
) -> tuple[attention.Mask, attention.CacheUpdate]:
  """Attention mask over the cache and the cache update, for positions `order`."""
  length, slots = order.shape[1], cache.layers[0].key.shape[2]
  if window is None or length == 1:

    def cache_update(kv, new):
      kv = attention.write(kv, new, cache.length)
      return kv, kv

    return attention.cache_mask(order, slots, window), cache_update

  # A prompt may be longer than the cache: it attends to itself only.
  lengths = jnp.full(len(order), length) if at is None else at + 1

  def keep_tail(kv, new):
    del kv
    return new, attention.tail_cache(new, lengths, slots)

  return attention.Mask(is_causal=True, window=window), keep_tail


def stack(params: Params) -> Params:
  """Parameters of L unrolled layers -> those of a scan over layers.

  {'block_0': {... [*]}, ..., **rest} -> {'blocks': {... [L, *]}, **rest}.
  """
  num_layers = sum(name.startswith("block_") for name in params)
  layers = [params[f"block_{i}"] for i in range(num_layers)]
  rest = {k: v for k, v in params.items() if not k.startswith("block_")}
  return {**rest, "blocks": jax.tree.map(lambda *x: jnp.stack(x), *layers)}


def unstack(params: Params) -> Params:
  """The inverse of `stack`."""
  num_layers = jax.tree.leaves(params["blocks"])[0].shape[0]
  layers = {
    f"block_{i}": jax.tree.map(operator.itemgetter(i), params["blocks"])
    for i in range(num_layers)
  }
  return {**{k: v for k, v in params.items() if k != "blocks"}, **layers}


def unstacked(params: Params) -> Params:
  """`unstack` of stacked layers; else params unchanged."""
  return unstack(params) if "blocks" in params else params


def unscanned(model: "Transformer") -> "Transformer":
  """The same model for `unstack`ed parameters; a cache requires it."""
  return Transformer(dataclasses.replace(model.config, scan_layers=False))


class Transformer(nn.Module):
  """See the module's docstring."""

  config: Config

  @nn.compact
  def __call__(
    self,
    tokens: Array,
    cache: Cache | None = None,
    *,
    positions: Array | None = None,
    segments: Array | None = None,
    at: Array | None = None,
    logits_fn: embed.LogitsFn | None = None,
    logits_fn_args: tuple[Array, ...] = (),
    train: bool = False,
  ) -> tuple[PyTree, Cache | None]:
    """Scores every next token.

    Args:
      tokens: int [B, T].
      cache: of earlier tokens; None: there are none. With a window, several tokens
        ignore earlier ones.
      positions: int [B, T]; None counts from the sequence's start (or its cache).
      segments: int [B, T], document of each token: no attention across documents. Not
        with a cache.
      at: int [B], the last position of each sequence before its padding: only the token
        after it is scored. None: no padding, all are scored.
      logits_fn: (logits float32 [B, T, V], *logits_fn_args) -> tree of [B, T, ...],
        returned instead of the logits; only `config.head_chunk` of them exist at once.
      logits_fn_args: arrays [B, T].
      train: apply dropout (needs the rng 'dropout').

    Returns:
      logits float32 [B, T, V] of the token after each one (or [B, 1, V] of that after
      `at`), and the cache with `tokens` written in and its lengths advanced by T.
    """
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    length = tokens.shape[1]
    order = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    if cache is not None:
      order = order + cache.length[:, None]
    positions = order if positions is None else positions
    if cache is None:
      mask = attention.Mask(segments=segments, is_causal=True, window=cfg.window)
      cache_update = None
    else:
      mask, cache_update = _memory(cfg.window, cache, order, at)

    table = (cfg.vocab_size, cfg.width, cfg.init_std, dtype)
    embedding = embed.Embed(*table, name="embed")
    x = embedding(tokens)
    x = embed.placed(x, positions, cfg.position, cfg.max_length)
    x = nn.Dropout(cfg.dropout, deterministic=not train)(x)
    x = sharding.constrain(x, "batch", "length", "act_embed")
    x, layers = self._layers(x, mask, positions, cache, cache_update, train)
    if at is not None:
      x = jnp.take_along_axis(x, at[:, None, None], axis=1)
    x = cfg.norm(name="final_norm")(x)
    out = self._score(x, embedding, logits_fn, logits_fn_args)
    if cache is not None:
      cache = Cache(layers, cache.length + length)
    return out, cache

  def _score(self, x, embedding, logits_fn, logits_fn_args):
    """The logits of x, or `logits_fn` of them."""
    cfg, dtype = self.config, jnp.dtype(self.config.dtype)
    if cfg.tied_head:
      head, x = embedding.score, widths.times(x, 1.0 / cfg.width_ratio)
    else:
      std = cfg.init_std / cfg.width_ratio
      head = embed.Head(cfg.vocab_size, std, dtype, name="head")
    if logits_fn is None:
      return head(x, logits_fn=lambda logits: logits)
    return head(x, *logits_fn_args, logits_fn=logits_fn, chunk=cfg.head_chunk)

  def _layers(self, x, mask, positions, cache, cache_update, train):
    """Runs L blocks, scanned or unrolled; returns x and the layers' updated caches."""
    cfg = self.config
    make = self._make_block()

    def apply(layer, x, kv, mask, positions):
      return layer(
        x,
        mask=mask,
        positions=positions,
        cache=kv,
        cache_update=cache_update,
        train=train,
      )

    apply = block.remat(apply, cfg.remat, prevent_cse=not cfg.scan_layers)
    if cfg.scan_layers:
      if cache is not None:
        raise ValueError("a cache needs unrolled layers: see `unscanned`")
      apply = nn.scan(
        apply,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,
        length=cfg.num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
      )
      x, _ = apply(make(name="blocks"), x, None, mask, positions)
      return x, ()
    layers = []
    for i in range(cfg.num_layers):
      kv = None if cache is None else cache.layers[i]
      x, kv = apply(make(name=f"block_{i}"), x, kv, mask, positions)
      layers.append(kv)
    return x, tuple(layers)

  def _make_block(self):
    """Constructor of a layer; takes its name."""
    cfg = self.config
    std = cfg.init_std / cfg.width_ratio**0.5
    common: dict[str, Any] = dict(
      use_bias=cfg.use_bias,
      init=linear.normal(std),
      # Residual branches start 1/sqrt(2L) smaller (Radford et al. 2019, section 2.3).
      out_init=linear.normal(std / (2 * cfg.num_layers) ** 0.5),
      dtype=jnp.dtype(cfg.dtype),
    )
    make_attention = functools.partial(
      attention.Attention,
      num_heads=cfg.num_heads,
      num_kv_heads=cfg.num_kv_heads,
      head_dim=cfg.dim_per_head,
      rotary=cfg.rotary,
      attention_impl=cfg.attention_impl,
      query_scale=cfg.query_scale,
      **common,
    )
    make_mlp = functools.partial(
      cfg.mlp, hidden=cfg.mlp_width or 4 * cfg.width, **common
    )
    return functools.partial(
      block.Block, make_attention, make_mlp, cfg.norm, cfg.dropout
    )
