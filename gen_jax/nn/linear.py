"""Linear maps whose parameters know their axes."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

Init = Callable[..., jnp.ndarray]


def normal(std: float) -> Init:
  """N(0, std^2)."""
  return nn.initializers.normal(std)


def fan_in(scale: float = 1.0) -> Init:
  """Uniform with variance scale / fan_in; scale 0 gives zeros."""
  if scale == 0.0:
    return nn.initializers.zeros_init()
  return nn.initializers.variance_scaling(scale, "fan_in", "uniform")


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
  """A linear map with named kernel axes; the bias takes the output axes' names."""
  features = (features,) if isinstance(features, int) else tuple(features)
  out_axes = tuple(axes[-len(features) :])
  return nn.DenseGeneral(
    features,
    axis=axis,
    use_bias=use_bias,
    kernel_init=nn.with_logical_partitioning(init or fan_in(), tuple(axes)),
    bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), out_axes),
    dtype=dtype,
    name=name,
  )


def conv(
  features: int,
  axes: tuple[str, str] = ("conv_in", "conv_out"),
  *,
  name: str,
  window: int = 3,
  stride: int = 1,
  padding: tuple[int, int] | None = None,
  use_bias: bool = True,
  init: Init | None = None,
  dtype: jnp.dtype = jnp.float32,
) -> nn.Conv:
  """A 2-D convolution [B, H, W, C] -> [B, H/stride, W/stride, features].

  Args:
    padding: pixels before and after, of both axes; None keeps the side at stride 1.
  """
  return nn.Conv(
    features,
    (window, window),
    strides=stride,
    padding=[padding or ((window - 1) // 2, window // 2)] * 2,
    use_bias=use_bias,
    kernel_init=nn.with_logical_partitioning(
      init or fan_in(), ("window", "window", *axes)
    ),
    bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), axes[1:]),
    dtype=dtype,
    name=name,
  )
