"""The pre-norm residual block of all transformers; what a block keeps for gradients."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from gen_jax import sharding
from gen_jax.nn import attention as attention_
from gen_jax.types import Array


def remat(fn: Callable, policy: Callable[..., bool] | None, **how: bool) -> Callable:
  """fn(module, *inputs), computed again for the gradient but for what `policy` keeps.

  Args:
    policy: of `jax.checkpoint_policies`; None keeps everything.
  """
  return fn if policy is None else nn.remat(fn, policy=policy, **how)


def call(module: nn.Module, *inputs: Any) -> Any:
  """module(*inputs)."""
  return module(*inputs)


class Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)). [B, T, D] -> [B, T, D].

  Source: Vaswani et al. 2017 with the normalisation first, Radford et al. 2019.
  """

  attention: Callable[..., nn.Module]
  mlp: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  dropout: float = 0.0

  @nn.compact
  def __call__(
    self,
    x: Array,
    *,
    mask: attention_.Mask,
    positions: Array | None = None,
    cache: attention_.KV | None = None,
    cache_update: attention_.CacheUpdate | None = None,
    train: bool = False,
  ) -> tuple[Array, attention_.KV | None]:
    drop = nn.Dropout(self.dropout, deterministic=not train)
    attend = self.attention(name="attention")
    h = self.norm(name="attention_norm")(x)
    h, cache = attend(
      h, mask=mask, positions=positions, cache=cache, cache_update=cache_update
    )
    x = x + drop(h)
    h = self.mlp(name="mlp")(self.norm(name="mlp_norm")(x))
    x = sharding.constrain(x + drop(h), "batch", "length", "act_embed")
    return x, cache
