"""UNet and text encoder: shapes, zero start, what they may and may not see."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import types
from gen_jax.models import text_encoder, unet
from gen_jax.nn import embed
from tests import tiny


@pytest.fixture(scope="module")
def setup():
  levels = unet.Config(1, 8, (1, 2), 1, (1,), num_heads=2, num_groups=4)
  task, batch = tiny.diffusion_task(network=unet.UNet(levels)), tiny.image_batch()
  return task, tiny.weights(task.init, batch), batch


def test_output_is_zero_at_initialisation():
  model = unet.UNet(unet.Config(1, 8, (1,), 1, (), num_heads=2, num_groups=4))
  x = jnp.ones((2, 8, 8, 1))
  out, _ = jax.jit(model.init_with_output)(jax.random.key(0), x, jnp.ones(2))
  assert out.shape == x.shape
  assert not out.any()


def test_hears_time_caption_and_every_pixel_but_no_other_example(setup):
  task, params, batch = setup
  states = jax.random.normal(jax.random.key(2), (tiny.BATCH, 4, 8))
  t = jnp.linspace(0.1, 0.9, tiny.BATCH)

  def pixel(x, t, states):
    states = types.States(states, batch["caption_mask"])
    out = task.network.apply({"params": params["unet"]}, x, t, states)
    return out[0, 3, 3, 0]

  dx, dt, ds = jax.jit(jax.grad(pixel, (0, 1, 2)))(batch["image"], t, states)
  assert (np.abs(dx[0]) > 0).all()
  assert abs(dt[0]) > 0
  seen = np.abs(np.asarray(ds[0])).max(-1) > 0
  np.testing.assert_array_equal(seen, batch["caption_mask"][0])
  assert not dx[1:].any() and not dt[1:].any() and not ds[1:].any()


def test_remat_changes_nothing(setup):
  task, params, batch = setup

  def gradient(remat):
    model = unet.UNet(dataclasses.replace(task.network.config, remat=remat))
    states = types.States(jnp.ones((tiny.BATCH, 4, 8)), batch["caption_mask"])
    inputs = (batch["image"], jnp.full(tiny.BATCH, 0.5), states)

    def size(p):
      return jnp.mean(model.apply({"params": p}, *inputs) ** 2)

    return jax.jit(jax.grad(size))(params["unet"])

  got, want = (gradient(r) for r in (jax.checkpoint_policies.nothing_saveable, None))
  atol = 1e-5 * max(float(np.abs(w).max()) for w in jax.tree.leaves(want))
  jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, atol=atol), got, want)


def test_padding_of_a_caption_is_not_read(setup):
  task, params, _ = setup
  mask = jnp.array([[True, True, False, False]])

  def encode(tokens):
    apply = jax.jit(task.conditioning.text_encoder.apply)
    states = apply({"params": params["text_encoder"]}, jnp.array([tokens]), mask)
    return states.tokens[:, :2]

  np.testing.assert_array_equal(encode([3, 5, 0, 0]), encode([3, 5, 9, 11]))
  assert not np.allclose(encode([3, 5, 0, 0]), encode([3, 6, 0, 0]))


def test_with_rotary_positions_a_caption_may_begin_anywhere():
  config = text_encoder.Config(16, 6, 2, 32, 4, position=None, rotary=embed.Rotary())
  model = text_encoder.TextEncoder(config)
  words, nothing = np.array([[3, 5, 7, 5]]), np.zeros((1, 2), int)
  params = tiny.weights(model.init, words, words > 0)

  def encode(x):
    return model.apply(params, x, x > 0).tokens

  early, late = np.hstack([words, nothing]), np.hstack([nothing, words])
  np.testing.assert_allclose(encode(early)[:, :4], encode(late)[:, 2:], atol=1e-5)
  assert np.abs(encode(early)[:, 1] - encode(early)[:, 3]).max() > 1e-3  # both are 5


@pytest.mark.parametrize(
  "fields, named",
  [
    (dict(width=100), "num_groups=32"),
    (dict(num_heads=5), "num_heads=5"),
    (dict(attention_levels=(2,)), "attention_levels"),
  ],
)
def test_impossible_configs_are_refused_by_name(fields, named):
  good = dict(
    image_channels=3,
    width=64,
    multipliers=(1, 2),
    num_blocks=1,
    attention_levels=(1,),
    num_heads=4,
  )
  unet.Config(**good)
  with pytest.raises(types.InputError, match=named):
    unet.Config(**{**good, **fields})


def test_sides_that_do_not_halve_are_refused():
  model = unet.UNet(unet.Config(1, 8, (1, 2, 2), 1, (), num_heads=2, num_groups=4))
  with pytest.raises(types.InputError, match="divisible by 4"):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 6, 6, 1)), jnp.zeros(1))


def test_text_encoder_refuses_heads_that_do_not_divide():
  with pytest.raises(types.InputError, match="num_heads=3"):
    text_encoder.Config(16, 4, 1, 8, 3)
