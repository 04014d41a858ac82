"""Layers of frozen PyTorch networks, with the weight names of their files.

Such networks are functions (weights, images) -> features: no module, no name map.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from gen_jax.types import Array

Weights = Mapping[str, Array]  # in torch's layout: kernels [O, I, H, W]


def conv(
  weights: Weights,
  name: str,
  x: Array,
  stride: int = 1,
  padding: str = "SAME",
  groups: int = 1,
) -> Array:
  """x [B, H, W, I] -> [B, H', W', O], without bias."""
  return jax.lax.conv_general_dilated(
    x,
    weights[f"{name}.weight"],
    (stride, stride),
    padding,
    dimension_numbers=("NHWC", "OIHW", "NHWC"),
    feature_group_count=groups,
  )


def batch_norm(weights: Weights, name: str, x: Array, eps: float = 1e-3) -> Array:
  """x [B, H, W, C] normalised by the running statistics."""
  kinds = ("weight", "bias", "running_mean", "running_var")
  gain, bias, mean, variance = (weights[f"{name}.{k}"] for k in kinds)
  gain = gain * jax.lax.rsqrt(variance + eps)
  gain, bias = (jnp.broadcast_to(v, x.shape) for v in (gain, bias - mean * gain))
  return x * gain + bias
