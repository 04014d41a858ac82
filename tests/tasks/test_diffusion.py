"""The diffusion task and the drawing of images."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import rng, sharding
from gen_jax.cost import flops
from gen_jax.data import tokenizers
from gen_jax.diffusion import corrupt, parameterisation, samplers, schedule
from gen_jax.inference import image_generator, prompts
from gen_jax.tasks import conditioning, diffusion
from tests import tiny


@pytest.fixture(scope="module")
def setup():
  task, batch = tiny.diffusion_task(), tiny.image_batch()
  return task, tiny.weights(task.init, batch), batch


def run(task, params, batch, keys, train):
  fn = jax.jit(lambda p, b, k: task.loss(p, {}, b, k, train=train))
  return fn(params, batch, keys)


def test_loss_is_the_weighted_error_of_the_network_itself(setup):
  """Re-derived from the network's raw output, example by example."""
  task, params, batch = setup
  keys = tiny.keys()
  out = run(task, params, batch, keys, False)
  time_keys, noise_keys = (
    jnp.stack([jax.random.split(k, 4)[i] for k in keys]) for i in (0, 1)
  )
  t = 1e-3 + (1 - 1e-3) * jnp.stack([jax.random.uniform(k) for k in time_keys])
  eps = jnp.stack([jax.random.normal(k, (8, 8, 1)) for k in noise_keys])
  alpha, sigma = (
    f(t)[:, None, None, None] for f in (task.schedule.alpha, task.schedule.sigma)
  )
  x_t = alpha * batch["image"] + sigma * eps
  states = task.conditioning.text_encoder.apply(
    {"params": params["text_encoder"]}, batch["caption"], batch["caption_mask"]
  )
  np.testing.assert_array_equal(states.mask, batch["caption_mask"])
  raw = jax.jit(task.network.apply)({"params": params["unet"]}, x_t, t, states)
  v = alpha * eps - sigma * batch["image"]
  per_example = ((raw - v) ** 2).mean((1, 2, 3))
  np.testing.assert_allclose(
    out.loss.total, (per_example * batch["weights"]).sum(), rtol=1e-4
  )
  assert out.loss.count == batch["weights"].sum()


def test_dropping_every_caption_leaves_nothing_of_it(setup):
  _, params, batch = setup
  other = {**batch, "caption": (batch["caption"] + 1) % 16}
  for prob, same in ((1.0, True), (0.0, False)):
    task = tiny.diffusion_task(drop_prob=prob)
    a, b = (run(task, params, x, tiny.keys(), True).loss.total for x in (batch, other))
    assert (a == b) == same
  # Evaluation never drops.
  task = tiny.diffusion_task(drop_prob=1.0)
  a, b = (run(task, params, x, tiny.keys(), False).loss.total for x in (batch, other))
  assert a != b


@pytest.fixture(scope="module")
def generator(setup):
  task, _, _ = setup
  tokenizer = tokenizers.train_bpe(["ab"], 257)

  def make(batch_size=3, **sampling):
    sampling = diffusion.Sampling(**{"num_steps": 3, "guidance_scale": 2.0, **sampling})
    config = task.conditioning.text_encoder.config
    config = dataclasses.replace(config, vocab_size=257)
    wide = tiny.diffusion_task(conditioning=tiny.text_conditioning(config))
    read = prompts.captions(tokenizer, 4)
    return image_generator.ImageGenerator(wide, read, sampling, (8, 8, 1), batch_size)

  return make


@pytest.fixture(scope="module")
def wide_params(setup, generator):
  return tiny.weights(generator().task.init, setup[2])


def test_image_i_does_not_depend_on_its_batch(generator, wide_params):
  captions, keys = ["a", "b", "ab", "", "ba"], rng.sample_keys(0, 5)
  ancestral = dict(sampler=samplers.ddpm)
  all_at_once = generator(5, **ancestral).images(wide_params, {}, captions, keys)
  in_threes = generator(3, **ancestral).images(wide_params, {}, captions, keys)
  np.testing.assert_allclose(
    all_at_once.astype(int), in_threes.astype(int), atol=1
  )  # 8-bit images; kernels of another batch size may round differently
  assert len({image.tobytes() for image in all_at_once}) == 5


def test_images_do_not_depend_on_the_mesh(generator, wide_params):
  """Eight devices draw eight images, one each; the ninth is in a batch of its own."""
  layout, placed = sharding.make_layout(data=4, fsdp=2), []

  def place(batch):
    placed.append(layout.spread(batch))
    return placed[-1]

  captions, keys = (
    ["a", "b", "ab", "", "ba", "aa", "bb", "abb", "a"],
    rng.sample_keys(0, 9),
  )
  alone = generator(8)
  shared = dataclasses.replace(alone, place=place)
  for num in (8, 9):
    both = [
      p.images(wide_params, {}, captions[:num], keys[:num]) for p in (alone, shared)
    ]
    np.testing.assert_allclose(*(x.astype(int) for x in both), atol=1)
  for leaf in jax.tree.leaves(placed):
    assert leaf.sharding.shard_shape(leaf.shape)[0] == 1
  nine = np.zeros((9, 2))
  assert layout.spread(nine) is nine


def test_guidance_one_is_no_guidance(setup):
  """Neither in what is drawn nor, where the scale is known, in what it costs."""
  task, params, batch = setup
  caption = conditioning.Caption(batch["caption"], batch["caption_mask"])
  sampling = diffusion.Sampling(num_steps=2, guidance_scale=1.0)

  def draw(params, scale):
    how = dataclasses.replace(sampling, guidance_scale=scale)
    return diffusion.draw(task, how, params, {}, caption, tiny.keys(), (8, 8, 1))

  def plain(params):
    denoise = task.denoiser(params, {}, caption)
    keys = [jnp.stack([jax.random.split(k, 2)[i] for k in tiny.keys()]) for i in (0, 1)]
    times = sampling.grid(task.schedule, 2)
    x = samplers.noise(task.schedule, times[0], keys[0], (8, 8, 1))
    sampler = samplers.ddim(task.schedule)
    return samplers.sample(denoise, sampler, times, x, keys[1])[0]

  drawn = jax.jit(draw)(params, 1.0)
  np.testing.assert_allclose(drawn, jax.jit(plain)(params), atol=1e-4)
  cost = flops.count(functools.partial(draw, scale=1.0), params)
  assert cost == flops.count(plain, params) < 0.6 * flops.count(draw, params, 1.0)


@pytest.mark.parametrize(
  "target", [parameterisation.Eps(), parameterisation.X0(), parameterisation.EDM()]
)
def test_all_targets_train(setup, target):
  _, params, batch = setup
  task = tiny.diffusion_task(target=target, schedule=schedule.VPLinear())
  out = run(task, params, batch, tiny.keys(), True)
  assert np.isfinite(out.loss.total) and out.loss.total > 0


@pytest.mark.parametrize(
  "sampler", [corrupt.UniformTime(), corrupt.StratifiedTime(0.1, 0.9)], ids=repr
)
def test_in_evaluation_an_example_does_not_know_its_batch(sampler):
  """Sums over halves of a batch are those over the whole, also of stratified times."""
  task, batch = tiny.diffusion_task(time_sampler=sampler), tiny.image_batch()
  params = tiny.weights(task.init, batch)
  loss = jax.jit(lambda some, keys: task.loss(params, {}, some, keys, train=False))

  def total(rows):
    some, keys = jax.tree.map(lambda x: x[rows], (batch, tiny.keys()))
    return float(loss(some, keys).loss.total)

  halves = total(slice(0, 4)) + total(slice(4, 8))
  assert halves == pytest.approx(total(slice(0, 8)), rel=1e-5)
