"""What diffusion is conditioned on: nothing, a class, or a caption; any network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import types
from gen_jax.models import dit, labels, text_encoder, unet
from gen_jax.nn import spatial
from gen_jax.tasks import conditioning, diffusion
from tests import tiny

UNET = unet.UNet(unet.Config(1, 8, (1,), 1, (), num_heads=2, num_groups=4))
DIT = dit.DiT(dit.Config(1, 8, 4, 8, 1, 2))
NETWORKS = {"unet": UNET, "dit": DIT}
CLASSES = 4


def classes(network):
  config = labels.Config(CLASSES, network.config.vector_width)
  return conditioning.ClassLabels(labels.LabelEncoder(config), CLASSES)


def batch():
  generator = np.random.default_rng(1)
  label = generator.integers(0, CLASSES, tiny.BATCH).astype(np.int32)
  return {**tiny.image_batch(), "label": label}


def loss(task, params, batch, train=True):
  run = jax.jit(lambda p, b: task.loss(p, {}, b, tiny.keys(), train=train).loss.total)
  return run(params, batch)


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_under_the_names_of_their_parts(name):
  network = NETWORKS[name]
  for value, names in (
    (conditioning.Unconditional(), {name}),
    (classes(network), {name, "labels"}),
  ):
    task = tiny.diffusion_task(network=network, conditioning=value)
    assert jax.eval_shape(task.init, jax.random.key(0), batch()).keys() == names


@pytest.mark.parametrize("name", NETWORKS)
def test_a_dropped_label_is_the_null_label(name):
  network, given = NETWORKS[name], batch()
  task = tiny.diffusion_task(network=network, conditioning=classes(network))
  params = tiny.weights(task.init, given)
  null = {**given, "label": np.asarray(task.conditioning.null(tiny.BATCH))}
  always, never = (dataclasses.replace(task, drop_prob=p) for p in (1.0, 0.0))
  assert loss(always, params, given) == loss(never, params, null)
  assert loss(never, params, given) != loss(never, params, null)
  assert loss(always, params, given, train=False) != loss(never, params, null)


def test_each_class_has_a_row_and_no_other_example_sees_it():
  given = batch()
  task = tiny.diffusion_task(network=DIT, conditioning=classes(DIT))
  params = tiny.weights(task.init, given)

  def pixel(table):
    own = {**params, "labels": {"table": table}}
    denoise = task.denoiser(own, {}, given["label"])
    return denoise(jnp.asarray(given["image"]), jnp.full(tiny.BATCH, 0.5)).x0[3].sum()

  gradient = jax.jit(jax.grad(pixel))(params["labels"]["table"])
  seen = np.abs(gradient).max(-1) > 0
  np.testing.assert_array_equal(seen, np.arange(CLASSES + 1) == given["label"][3])


def test_an_unconditional_model_reads_no_prompt_and_has_no_guidance():
  given = batch()
  task = tiny.diffusion_task(network=UNET, conditioning=conditioning.Unconditional())
  params = tiny.weights(task.init, {"image": given["image"]})
  images = {"image": given["image"], "weights": given["weights"]}
  assert loss(task, params, given) == loss(task, params, images)

  def draw(scale):
    how = diffusion.Sampling(num_steps=2, guidance_scale=scale)

    def run(p):
      return diffusion.draw(task, how, p, {}, (), tiny.keys(), (8, 8, 1))

    return jax.jit(run).lower(params).as_text(), jax.jit(run)(params)

  (one, first), (other, second) = draw(1.0), draw(5.0)
  assert one == other  # and costs no more
  np.testing.assert_array_equal(first, second)


def test_attention_to_pixels_alone_refuses_captions():
  """A caption that nothing reads would be ignored in silence."""
  config = dataclasses.replace(UNET.config, attention=spatial.SelfAttention)
  with_text = tiny.diffusion_task(network=unet.UNet(config))
  with pytest.raises(types.InputError, match="does not attend to text"):
    jax.eval_shape(with_text.init, jax.random.key(3), batch())
  without = dataclasses.replace(with_text, conditioning=conditioning.Unconditional())
  assert jax.eval_shape(without.init, jax.random.key(3), batch())["unet"]


def test_a_vector_reaches_every_pixel_of_a_unet_of_its_own_example():
  params = tiny.weights(UNET.init, np.zeros((2, 8, 8, 1), np.float32), jnp.zeros(2))
  x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
  vector = jax.random.normal(jax.random.key(2), (2, 32))

  def pixel(vector):
    states = types.States(vector=vector)
    return UNET.apply(params, x, jnp.array([0.2, 0.9]), states)[0, 3, 3, 0]

  gradient = jax.jit(jax.grad(pixel))(vector)
  assert (np.abs(gradient[0]) > 0).all() and not gradient[1].any()


def test_a_dit_refuses_captions():
  task = tiny.diffusion_task(
    network=DIT,
    conditioning=tiny.text_conditioning(text_encoder.Config(16, 4, 1, 8, 2)),
  )
  with pytest.raises(types.InputError, match="no cross-attention for text"):
    jax.eval_shape(task.init, jax.random.key(0), batch())
