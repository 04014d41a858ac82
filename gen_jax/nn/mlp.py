"""Feed-forward networks."""

import functools
import math
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import sharding
from gen_jax.nn import linear
from gen_jax.types import Array


@jax.custom_vjp
def gelu(x: Array) -> Array:
  """x Phi(x), Phi approximated by tanh. Hendrycks & Gimpel 2016.

  The forward pass keeps the derivative instead of x, reusing its tanh.
  """
  return _gelu(x)[0]


def _gelu(x):
  c = (2.0 / jnp.pi) ** 0.5
  tanh = jnp.tanh(c * (x + 0.044715 * x**3))
  phi = 0.5 * (1.0 + tanh)
  slope = phi + 0.5 * x * (1.0 - tanh**2) * c * (1.0 + 3 * 0.044715 * x**2)
  return x * phi, slope


gelu.defvjp(_gelu, lambda slope, dy: (slope * dy,))


def quick_gelu(x: Array) -> Array:
  """x sigmoid(1.702 x), CLIP's approximation. Hendrycks & Gimpel 2016 section 2."""
  return x * jax.nn.sigmoid(1.702 * x)


def relu_squared(x: Array) -> Array:
  """max(x, 0)^2. So et al. 2021 (arXiv:2109.08668)."""
  return jnp.square(jax.nn.relu(x))


class MLP(nn.Module):
  """D -> F -> D with a pointwise non-linearity. [B, T, D] -> [B, T, D]."""

  hidden: int
  activation: Callable[[Array], Array] = gelu
  use_bias: bool = True
  init: linear.Init | None = None  # type: ignore[assignment]  # linen's, not called
  out_init: linear.Init | None = None
  dtype: jnp.dtype = jnp.float32

  inputs: ClassVar[tuple[str, ...]] = ("up",)  # the first is activated, others gate it

  @nn.compact
  def __call__(self, x: Array) -> Array:
    dense = functools.partial(linear.dense, use_bias=self.use_bias, dtype=self.dtype)
    h, *factors = (
      dense(self.hidden, ("embed", "mlp"), name=name, init=self.init)(x)
      for name in self.inputs
    )
    h = math.prod(factors, start=self.activation(h))
    h = sharding.constrain(h, "batch", "length", "act_mlp")
    return dense(x.shape[-1], ("mlp", "embed"), name="down", init=self.out_init)(h)


class GatedMLP(MLP):
  """down(activation(gate x) * up x): SwiGLU with silu. Shazeer 2020 (2002.05202)."""

  activation: Callable[[Array], Array] = jax.nn.silu
  use_bias: bool = False

  inputs: ClassVar[tuple[str, ...]] = ("gate", "up")
