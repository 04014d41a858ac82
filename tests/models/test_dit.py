"""DiT: the paper's sizes, its zero start, patches, positions and labels."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import sharding, types
from gen_jax.diffusion import codec
from gen_jax.models import dit, labels
from gen_jax.nn import linear

CONFIG = dit.Config(
  image_channels=3,
  image_size=8,
  patch_size=2,
  width=16,
  num_layers=2,
  num_heads=2,
  extra_channels=1,
)
STATES = types.States(vector=jax.random.normal(jax.random.key(5), (2, 16)))


def inputs(config=CONFIG, side=8):
  channels = config.image_channels + config.extra_channels
  x = jax.random.normal(jax.random.key(1), (2, side, side, channels))
  return x, jnp.array([0.2, 0.9])


def random_params(config=CONFIG):
  """Nothing is zero, unlike at initialisation."""
  side = config.image_size
  inits = jax.random.key(0), *inputs(config, side)
  shapes = jax.eval_shape(dit.DiT(config).init, *inits)
  shapes = sharding.unbox(shapes["params"])
  keys = iter(jax.random.split(jax.random.key(2), 99))
  return jax.tree.map(lambda x: 0.3 * jax.random.normal(next(keys), x.shape), shapes)


def apply(params, *args, config=CONFIG):
  return jax.jit(dit.DiT(config).apply)({"params": params}, *args)


# (layers, width, heads) of Peebles & Xie 2022, table 1, and millions of parameters as
# they give them for patches of 2 (table 4).
SIZES = {
  "S": (12, 384, 6, 33),
  "B": (12, 768, 12, 130),
  "L": (24, 1024, 16, 458),
  "XL": (28, 1152, 16, 675),
}


def released(num_layers, width, channels=4, patch=2, num_classes=1000):
  """Trained parameters of the released code, module by module."""

  def linear(i, o):
    return i * o + o

  block = linear(width, 3 * width) + linear(width, width)
  block += linear(width, 4 * width) + linear(4 * width, width)
  block += linear(width, 6 * width)
  ends = linear(patch**2 * channels, width) + linear(width, patch**2 * 2 * channels)
  time = linear(256, width) + linear(width, width)
  table = (num_classes + 1) * width
  return num_layers * block + ends + linear(width, 2 * width) + time + table


@pytest.mark.parametrize("size", SIZES)
def test_parameters_are_the_papers(size):
  num_layers, width, num_heads, millions = SIZES[size]
  config = dit.Config(4, 32, 2, width, num_layers, num_heads, learn_sigma=True)
  x = jnp.zeros((1, 32, 32, 4))
  net = jax.eval_shape(dit.DiT(config).init, jax.random.key(0), x, jnp.zeros(1))
  table = jax.eval_shape(
    labels.LabelEncoder(labels.Config(1000, width)).init,
    jax.random.key(0),
    jnp.zeros(1, int),
  )
  found = sum(x.size for x in jax.tree.leaves(sharding.unbox((net, table))))
  assert found == released(num_layers, width)
  assert round(found / 1e6) == millions
  if size == "XL":  # the released code also counts the fixed positions of 256 patches
    assert found + 256 * width == 675_129_632


def test_output_is_zero_and_blocks_are_the_identity_at_initialisation():
  net = dit.DiT(CONFIG)
  out, variables = jax.jit(net.init_with_output)(jax.random.key(0), *inputs(), STATES)
  assert out.shape == (2, 8, 8, 3) and out.dtype == jnp.float32
  assert not out.any()
  x = jax.random.normal(jax.random.key(3), (2, 16, 16))
  block = {"params": sharding.unbox(variables["params"]["block_0"])}
  found = jax.jit(dit.Block(CONFIG).apply)(block, x, STATES.vector)
  np.testing.assert_array_equal(found, x)


def test_every_pixel_time_and_vector_reach_every_output_of_their_own_example():
  params = random_params()

  def pixel(x, t, vector):
    return apply(params, x, t, types.States(vector=vector))[0, 3, 3, 0]

  dx, dt, dv = jax.jit(jax.grad(pixel, (0, 1, 2)))(*inputs(), STATES.vector)
  for gradient in (dx, dt, dv):
    assert (np.abs(gradient[0]) > 0).all()
    assert not gradient[1:].any()


def test_remat_changes_nothing():
  params = random_params()

  def gradient(remat):
    config = dataclasses.replace(CONFIG, remat=remat)

    def size(p):
      return jnp.mean(apply(p, *inputs(), STATES, config=config) ** 2)

    return jax.jit(jax.grad(size))(params)

  got, want = (gradient(r) for r in (jax.checkpoint_policies.nothing_saveable, None))
  atol = 1e-5 * max(float(np.abs(w).max()) for w in jax.tree.leaves(want))
  jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, atol=atol), got, want)


def test_more_channels_are_ignored_at_first():
  narrow = dataclasses.replace(CONFIG, extra_channels=0)
  params, (x, t) = random_params(narrow), inputs()
  wide = linear.widen(params, CONFIG.stem, 1)
  found = apply(wide, x, t, STATES)
  want = apply(params, x[..., :3], t, STATES, config=narrow)
  np.testing.assert_allclose(found, want, atol=1e-5)


def test_unpatchify_puts_patches_back():
  """`codec.patches` folds by code of its own."""
  x = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
  folded = codec.patches(2).encode(None, x, None)
  found = dit.unpatchify(folded.reshape(2, 6, 12), 3, 2, 2)
  np.testing.assert_array_equal(found, x)


def test_patches_are_cut_as_they_are_put_back():
  """Of a kernel that copies pixels, the embedding is what `unpatchify` undoes."""
  config = dit.Config(3, 4, 2, 12, 1, 1)
  x, t = inputs(config, side=4)
  params = random_params(config)
  params["patch_in"] = {
    "kernel": jnp.eye(12).reshape(2, 2, 3, 12),
    "bias": jnp.zeros(12),
  }
  seeing = functools.partial(dit.DiT(config).apply, capture_intermediates=True)
  _, seen = jax.jit(seeing)({"params": params}, x, t)
  found = seen["intermediates"]["patch_in"]["__call__"][0].reshape(2, 4, 12)
  np.testing.assert_allclose(dit.unpatchify(found, 2, 2, 2), x, rtol=1e-6)


def test_learn_sigma_returns_the_first_channels_alone():
  config = dataclasses.replace(CONFIG, learn_sigma=True)
  params = random_params(config)
  wide = apply(params, *inputs(), STATES, config=config)
  kernel, bias = params["patch_out"]["kernel"], params["patch_out"]["bias"]
  params["patch_out"] = {
    "kernel": kernel.reshape(16, 4, 6)[..., :3].reshape(16, 12),
    "bias": bias.reshape(4, 6)[:, :3].reshape(12),
  }
  np.testing.assert_allclose(wide, apply(params, *inputs(), STATES), atol=1e-5)


def test_positions_of_a_larger_image_run_over_the_same_interval():
  """Every second column and row is that of the smaller one; the two are told apart."""
  small = dit.positions(3, 2, 4, 8).reshape(3, 2, 8)
  large = dit.positions(6, 4, 4, 8).reshape(6, 4, 8)
  np.testing.assert_allclose(large[::2, ::2], small, atol=1e-6)
  np.testing.assert_array_equal(small[0, :, :4], small[2, :, :4])  # of the column
  np.testing.assert_array_equal(small[:, 0, 4:], small[:, 1, 4:])  # of the row
  assert len(np.unique(np.asarray(small).reshape(6, 8), axis=0)) == 6


def test_the_last_row_of_labels_is_no_class():
  net = labels.LabelEncoder(labels.Config(num_classes=3, width=4))
  params = sharding.unbox(net.init(jax.random.key(0), jnp.zeros(1, int)))
  found = net.apply(params, jnp.array([2, 0, 3]))
  table = params["params"]["table"]
  assert table.shape == (4, 4)
  assert found.tokens is None and found.mask is None
  np.testing.assert_array_equal(found.vector, table[jnp.array([2, 0, 3])])


@pytest.mark.parametrize(
  "change, named",
  [
    ({"num_heads": 3}, "divisible by num_heads=3; try width=18"),
    ({"width": 6}, "divisible by 4"),
    ({"image_size": 9}, "sides divisible by it, got 9x9"),
  ],
)
def test_sizes_that_do_not_divide_are_refused(change, named):
  with pytest.raises(types.InputError, match=named):
    dataclasses.replace(CONFIG, **change)


def test_text_has_no_place():
  with pytest.raises(types.InputError, match="no cross-attention"):
    dit.DiT(CONFIG).init(
      jax.random.key(0), *inputs(), types.States(tokens=jnp.zeros((2, 4, 8)))
    )
