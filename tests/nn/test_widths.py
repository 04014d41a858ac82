"""muP inside models: initial sizes, the two factors, and a base of the same width."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import sharding, tree
from gen_jax.convert import to_transformers
from gen_jax.models import dit, transformer, unet
from tests import tiny

TOKENS = jnp.arange(24).reshape(2, 12)


def language_model(**changes):
  config = dict(vocab_size=32, max_length=24, num_layers=2, width=64, num_heads=4)
  return transformer.Transformer(transformer.Config(**{**config, **changes}))


def network(kind, base_width):
  if kind == "unet":
    config = dict(num_heads=2, num_groups=4, base_width=base_width)
    return unet.UNet(unet.Config(1, 32, (1, 2), 1, (0,), **config))
  config = dict(width=32, num_layers=2, num_heads=4, base_width=base_width)
  return dit.DiT(dit.Config(1, 8, 2, **config))


def initial(model, *inputs):
  made = jax.jit(model.init)(jax.random.key(0), *inputs)
  return tree.flatten(sharding.unbox(made)["params"])


def logits(model, params):
  return jax.jit(model.apply)(params, TOKENS)[0]


def image_inputs():
  return jnp.zeros((2, 8, 8, 1)), jnp.linspace(0, 1, 2)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_as_wide_as_its_base_is_the_standard_one(tied):
  plain = language_model(tied_head=tied)
  same = language_model(tied_head=tied, base_width=64, base_num_heads=4)
  params, other = (
    sharding.unbox(jax.jit(m.init)(jax.random.key(0), TOKENS)) for m in (plain, same)
  )
  assert tree.sha256(params) == tree.sha256(other)
  np.testing.assert_array_equal(logits(plain, params), logits(same, params))


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_a_network_as_wide_as_its_base_is_the_standard_one(kind):
  params = [initial(network(kind, base), *image_inputs()) for base in (None, 32)]
  assert tree.sha256(params[0]) == tree.sha256(params[1])


def test_initial_sizes_of_a_transformer():
  """1 / sqrt(m) in matrices whose inputs grow, 1 / m in a head; tables as they are."""
  plain = initial(language_model(width=256, num_heads=16, tied_head=False), TOKENS)
  wide = initial(
    language_model(width=256, num_heads=16, tied_head=False, base_width=64), TOKENS
  )
  for path, x in plain.items():
    std = {"head/kernel": 0.25}.get(path, 0.5 if path.endswith("kernel") else 1.0)
    np.testing.assert_allclose(wide[path], std * x, atol=1e-7, err_msg=path)


@pytest.mark.parametrize("base", [None, 16])
def test_all_that_a_transformer_draws_grows_with_its_init_std(base):
  """Biases and norms stay; 0.02 is the one of GPT-2."""
  changes = dict(tied_head=False, base_width=base)
  plain, wide = (
    initial(language_model(init_std=std, **changes), TOKENS) for std in (0.02, 0.06)
  )
  for path, x in plain.items():
    is_drawn = path.endswith("kernel") or path == "embed/table"
    wanted = (3.0 if is_drawn else 1.0) * x
    np.testing.assert_allclose(wide[path], wanted, rtol=1e-5, atol=1e-8, err_msg=path)
  assert np.std(plain["embed/table"]) == pytest.approx(0.02, rel=0.05)


def test_initial_sizes_of_a_dit():
  """Patches and the clock do not grow; the second map of the clock reads the width."""
  plain, wide = (initial(network("dit", base), *image_inputs()) for base in (None, 8))
  ratio = np.std(wide["patch_in/kernel"]) / np.std(plain["patch_in/kernel"])
  assert ratio == pytest.approx(((4 + 32) / (4 + 8)) ** 0.5, rel=1e-5)
  np.testing.assert_allclose(wide["time_out/kernel"], plain["time_out/kernel"] / 2)
  np.testing.assert_array_equal(wide["time_in/kernel"], plain["time_in/kernel"])


def test_initial_sizes_of_a_unet_are_right_already():
  """But for the clock, which has the base's sinusoids, nothing differs."""
  plain, wide = (initial(network("unet", base), *image_inputs()) for base in (None, 8))
  for path, x in plain.items():
    if path != "time_in/kernel":
      np.testing.assert_array_equal(wide[path], x)
  assert (plain["time_in/kernel"].shape[0], wide["time_in/kernel"].shape[0]) == (32, 8)


def test_a_tied_head_divides_its_input_by_m():
  plain, wide = language_model(), language_model(base_width=16)
  params = tiny.weights(plain.init, TOKENS)
  one, other = (logits(model, params) for model in (plain, wide))
  np.testing.assert_allclose(4.0 * other, one, rtol=1e-5)


def test_larger_heads_score_by_their_size():
  """sqrt(base / Dh) = 1/2 of the query, biases too, where heads grow 4 times."""
  changes = dict(tied_head=False)
  wide = language_model(base_width=16, base_num_heads=4, **changes)
  assert wide.config.query_scale == 0.5
  assert language_model(base_width=16, **changes).config.query_scale == 1.0
  params = tiny.weights(wide.init, TOKENS)

  def halved(path, x):
    return 0.5 * x if "/query/" in path else x

  np.testing.assert_allclose(
    logits(wide, params),
    logits(language_model(**changes), tree.map_with_path(halved, params)),
    rtol=1e-4,
    atol=1e-5,
  )


def test_larger_heads_of_a_unet_score_by_their_size():
  """As many heads as the base's are larger; heads of one size score as ever."""
  config = unet.Config(1, 32, (1,), 1, (0,), num_heads=2, num_groups=4, base_width=16)
  sized = dataclasses.replace(config, num_heads=None, head_dim=16)
  params = tiny.weights(unet.UNet(config).init, *image_inputs())
  x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))

  def smaller(path, x):
    return 0.5**0.5 * x if "/query/" in path else x

  np.testing.assert_allclose(
    jax.jit(unet.UNet(config).apply)(params, x, jnp.array([0.2, 0.7])),
    jax.jit(unet.UNet(sized).apply)(
      tree.map_with_path(smaller, params), x, jnp.array([0.2, 0.7])
    ),
    rtol=1e-4,
    atol=1e-5,
  )


def test_an_exported_model_is_the_same_function():
  """The factors move into the queries and the last norm."""
  wide = language_model(base_width=16, base_num_heads=4)
  params = tiny.weights(wide.init, TOKENS)
  moved = {"params": to_transformers._standard(wide.config, params["params"])}
  np.testing.assert_allclose(
    logits(wide, params), logits(language_model(), moved), rtol=1e-4, atol=1e-5
  )


def test_numbers_at_another_width():
  config = language_model(
    width=256, num_heads=16, num_kv_heads=4, mlp_width=512, base_width=64
  ).config
  keys = config.at_width(64)
  assert (keys["num_heads"], keys["num_kv_heads"], keys["mlp_width"]) == (4, 1, 128)
  assert keys["base_width"] is None
  fixed = dataclasses.replace(config, base_num_heads=8, head_dim=32).at_width(64)
  assert (fixed["num_heads"], fixed["num_kv_heads"], fixed["head_dim"]) == (8, 2, 16)
