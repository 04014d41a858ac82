"""How convolutions are compiled."""

import jax
import jax.numpy as jnp

from gen_jax import sharding  # and gen_jax itself, which speaks to XLA
from gen_jax.nn import spatial


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


def test_a_residual_block_over_tensor_sums_once():
  """Its inner channels are cut, norm included; only what it adds to x is summed."""
  layout = sharding.make_layout(1, 1, 4, rules="fsdp_tensor", devices=jax.devices()[:4])
  block, x = spatial.ResBlock(16, num_groups=4), jnp.ones((2, 8, 8, 16))
  time = jnp.ones((2, 8))
  boxed = jax.eval_shape(block.init, jax.random.key(0), x, time)
  params = jax.tree.map(
    lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
    sharding.unbox(boxed),
    layout.of(boxed),
  )

  @jax.jit
  def forward(params, x, time):
    with sharding.use(layout):
      return block.apply(params, x, time)

  program = forward.lower(params, x, time).compile().as_text()
  assert "f32[3,3,16,4]" in program and "f32[3,3,16,16]" not in program
  assert program.count(" all-reduce(") == 1
  for kind in ("all-gather", "all-to-all", "collective-permute"):
    assert f" {kind}(" not in program
