"""The walks from noise to images and back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import rng
from gen_jax.diffusion import schedule
from gen_jax.inference import figures, sheets
from gen_jax.tasks import diffusion, states
from tests import tiny


@pytest.fixture(scope="module")
def setup():
  task, batch = tiny.diffusion_task(), tiny.image_batch()
  return task, tiny.weights(task.init, batch), batch


def test_a_walk_ends_where_the_drawing_does_and_begins_with_its_noise(setup):
  task, params, _ = setup
  sampling = diffusion.Sampling(num_steps=3, guidance_scale=1.0)
  prompt, keys = task.conditioning.null(4), rng.sample_keys(0, 4)
  given = (task, sampling, params, {}, prompt, keys, (8, 8, 1))
  drawn = jax.jit(lambda: diffusion.draw(*given))()
  first, middle, last = jax.jit(lambda: states.walk(*given, (0, 2, 3)))()
  np.testing.assert_allclose(last, drawn, atol=1e-5)
  noise = rng.normal(rng.split(keys, 2)[0], (8, 8, 1))
  np.testing.assert_allclose(first, noise, atol=1e-5)
  two = diffusion.times(task, sampling)[:3]
  shorter = dataclasses.replace(sampling, grid=lambda s, n: two, num_steps=2)
  stopped = jax.jit(lambda: states.walk(task, shorter, *given[2:], (2,)))()[0]
  np.testing.assert_allclose(middle, stopped, atol=1e-5)


@pytest.mark.parametrize("made", [schedule.RectifiedFlow(), schedule.Karras()])
def test_images_on_their_way_to_noise(setup, made):
  """The image at 0, its noise alone at 1, in between of unit variance."""
  task = dataclasses.replace(setup[0], schedule=made)
  x = jax.random.normal(jax.random.key(3), (4, 8, 8, 1))
  keys, at = rng.sample_keys(1, 4), jnp.array([0.0, 0.5, 1.0])
  image, middle, end = states.noised(task, diffusion.Sampling(), {}, x, keys, at)
  eps = rng.normal(rng.fold_in(keys, 2), (8, 8, 1))
  np.testing.assert_allclose(image, x, atol=0.01)
  np.testing.assert_allclose(end, eps, atol=0.05)
  alpha, sigma = made.alpha(at[1]), made.sigma(at[1])
  mixed = (alpha * x + sigma * eps) / np.sqrt(alpha**2 + sigma**2)
  np.testing.assert_allclose(middle, mixed, atol=1e-5)


def test_a_figure_has_its_words_around_its_images(tmp_path):
  pytest.importorskip("matplotlib")
  pixels = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4, 1)
  made = figures.Figure(pixels, "what it is", ("first", "second"), [["a", "b"], ["c"]])
  axes = sheets.labelled(pixels, made.rows, made.titles).axes
  assert [axis.get_title() for axis in axes] == ["a", "b", "", "c", "", ""]
  labels = [axis.get_ylabel() for axis in axes]
  assert labels == ["first", "", "", "second", "", ""]
  shown = [axis.images[0].get_array() for axis in axes]
  np.testing.assert_array_equal(np.stack(shown), pixels.reshape(6, 4, 4))
  path = sheets.save_figure(tmp_path, "one", *made)
  assert path.read_bytes()[:4] == b"\x89PNG"
  assert path.with_suffix(".pdf").read_bytes()[:5] == b"%PDF-"
  assert path.with_suffix(".txt").read_text() == "what it is\n"
