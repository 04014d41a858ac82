"""How convolutions are compiled."""

import jax
import jax.numpy as jnp

import gen_jax  # noqa: F401 (it speaks to XLA)


def test_convolutions_on_cpus_are_not_left_to_ynnpack():
  """XLA hears what `gen_jax/__init__.py` asks of it."""
  x, kernel = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 32))

  def loss(x, kernel):
    y = jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.square(y).sum()

  program = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).compile().as_text()
  assert program.count(" convolution(") == 3
  assert "__ynn_fusion" not in program
