"""Linear maps whose parameters have logical axis names."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import sharding
from gen_jax.nn import cpu
from gen_jax.types import Array, Params

Init = Callable[..., jnp.ndarray]


def normal(std: float) -> Init:
  """N(0, std^2)."""
  return nn.initializers.normal(std)


def fan_in(scale: float = 1.0) -> Init:
  """Uniform with variance scale / fan_in; scale 0 gives zeros."""
  if scale == 0.0:
    return nn.initializers.zeros_init()
  return nn.initializers.variance_scaling(scale, "fan_in", "uniform")


def named(init: Init, axes: Sequence[str | None]) -> Callable[..., Any]:
  """`init` of a parameter whose axes have these names; a module gets the bare array."""
  return nn.with_logical_partitioning(init, tuple(axes))


def product(x: Array, kernel: Array, depth: int = 1) -> Array:
  """x [..., *inputs], kernel [*inputs, *features] -> [..., *features].

  Contracts the last `depth` axes of x with the first of the kernel.
  """
  if x.size == math.prod(kernel.shape[:depth]):
    multiply = functools.partial(jnp.tensordot, axes=depth)
    in_pieces = functools.partial(cpu.row_times_kernel, depth=depth)
    return jax.lax.platform_dependent(x, kernel, cpu=in_pieces, default=multiply)
  return jnp.tensordot(x, kernel, depth)


def _contracting(axes: Sequence[str | None]):
  """`product` with linen's signature; gathers the kernel for its use."""

  def run(x, kernel, numbers, **options):
    del options  # dtype options are not needed; numbers have no batch axes
    depth = len(numbers[0][0])
    has_length = x.ndim - depth > 1

    def multiply(kernel, x):
      return product(x, kernel, depth)

    return sharding.gathering(multiply, axes, has_length)(kernel, x)

  return run


def _convolving(axes: Sequence[str | None]):
  """A convolution with linen's signature; gathers the kernel for its use."""

  def run(x, kernel, *args, **kwargs):
    def convolve(kernel, x):
      return jax.lax.conv_general_dilated(x, kernel, *args, **kwargs)

    return sharding.gathering(convolve, axes)(kernel, x)

  return run


def widen(params: Params, name: str, num: int) -> Params:
  """Parameters whose convolution `name` takes `num` more channels, ignored at first.

  Source: Brooks et al. 2023 (arXiv:2211.09800) section 3.2.
  """
  kernel = params[name]["kernel"]  # [h, w, C, features]
  kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, num), (0, 0)))
  return {**params, name: {**params[name], "kernel": kernel}}


def split(names: tuple[str | None, ...]) -> tuple[int, int]:
  """(stacked axes, output axes) of a kernel with these axis names.

  >>> split(('embed', 'heads', 'head_dim')), split(('layers', 'embed', 'mlp'))
  ((0, 2), (1, 1))
  """
  return int(names[0] == "layers"), 2 if names[-1] == "head_dim" else 1


def dense(
  features: int | Sequence[int],
  axes: Sequence[str | None],
  *,
  name: str,
  axis: int | Sequence[int] = -1,
  use_bias: bool = True,
  init: Init | None = None,
  dtype: jnp.dtype = jnp.float32,
) -> nn.DenseGeneral:
  """A linear map with named kernel axes; the bias has the output axes' names."""
  features = (features,) if isinstance(features, int) else tuple(features)
  out_axes = tuple(axes[-len(features) :])
  return nn.DenseGeneral(
    features,
    axis=axis,
    use_bias=use_bias,
    kernel_init=named(init or fan_in(), axes),
    bias_init=named(nn.initializers.zeros_init(), out_axes),
    dtype=dtype,
    dot_general_cls=lambda: _contracting(axes),
    name=name,
  )


def conv(
  features: int,
  axes: tuple[str, str] = ("conv_in", "conv_out"),
  *,
  name: str | None,
  window: int = 3,
  stride: int = 1,
  padding: tuple[int, int] | None = None,
  use_bias: bool = True,
  init: Init | None = None,
  dtype: jnp.dtype = jnp.float32,
) -> nn.Conv:
  """A 2-D convolution [B, H, W, C] -> [B, H/stride, W/stride, features].

  Args:
    padding: pixels before and after, on both axes; None keeps H and W at stride 1.
  """
  return nn.Conv(
    features,
    (window, window),
    strides=stride,
    padding=[padding or ((window - 1) // 2, window // 2)] * 2,
    use_bias=use_bias,
    kernel_init=named(init or fan_in(), ("window", "window", *axes)),
    bias_init=named(nn.initializers.zeros_init(), axes[1:]),
    conv_general_dilated=_convolving(("window", "window", *axes)),
    dtype=dtype,
    name=name,
  )
