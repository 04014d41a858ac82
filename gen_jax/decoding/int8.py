"""Weights as 8-bit integers: a quarter of the memory, at a price that can be measured.

w ~ scale * q with q in -127 .. 127 and one scale for what shares all indices but the
first (an output of a kernel [inputs, ...]), so |w - scale q| is at most scale / 2.
Source: Dettmers et al. 2022 (arXiv:2208.07339) section 2.1, absmax, without its
treatment of outliers.
"""

import dataclasses

import jax
import jax.numpy as jnp

from gen_jax.types import Array, PyTree

MIN_SIZE = 4096


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
  """An array as integers: values int8 [...], scale float32 [1, ...]."""

  values: Array
  scale: Array


def quantize(params: PyTree) -> PyTree:
  """Replaces each float array of rank 2 or more and at least MIN_SIZE elements.

  Layers must be in a row, not stacked.

  >>> q = quantize({"kernel": jnp.ones((64, 64)), "bias": jnp.ones(64)})
  >>> type(q["kernel"]).__name__, q["kernel"].values.dtype.name, q["bias"].dtype.name
  ('Quantized', 'int8', 'float32')
  """

  def one(x):
    if x.ndim < 2 or x.size < MIN_SIZE:
      return x
    largest = jnp.abs(x).max(axis=0, keepdims=True)
    scale = jnp.maximum(largest, 1e-30).astype(jnp.float32) / 127.0
    return Quantized(jnp.round(x / scale).astype(jnp.int8), scale)

  return jax.tree.map(one, params)


def dequantize(params: PyTree) -> PyTree:
  """Float arrays again; the identity where nothing was quantized."""

  def one(x):
    return x.values * x.scale if isinstance(x, Quantized) else x

  return jax.tree.map(one, params, is_leaf=lambda x: isinstance(x, Quantized))
