"""Conditions beside x_t: masks, what is masked, and random holes."""

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.diffusion import codec, condition
from tests import tiny

IMAGE = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
KEYS = tiny.keys(0, 2)


def means(x):
  """Of 2x2 pixels."""
  return jnp.asarray(x).reshape(2, 4, 2, 4, 2, 3).mean((2, 4))


BLOCKS = codec.Codec(
  encode=lambda frozen, x, keys: frozen * means(x),
  decode=None,
  code=lambda frozen, x: means(x),
)


def test_inpainting_sees_the_mask_and_the_rest_of_the_image():
  change = np.zeros((2, 8, 8), np.bool_)
  change[0, :4, :2] = True  # two whole latents, and
  change[0, 7, 7] = True  # one pixel of another
  interleave = condition.inpainting()
  assert interleave.channels(3) == 4
  given = {"image": IMAGE, "change": change}
  mask, rest = np.split(np.asarray(interleave.extra(BLOCKS, 2.0, given, KEYS)), [1], -1)
  wanted = np.zeros((2, 4, 4, 1))
  wanted[0, :2, 0] = wanted[0, 3, 3] = 1.0
  np.testing.assert_array_equal(mask, wanted)
  seen = np.where(change[..., None], 0.0, IMAGE)
  np.testing.assert_allclose(rest, 2.0 * means(seen), atol=1e-6)


def test_an_instruction_sees_the_image_before():
  interleave = condition.instruction()
  given = {"before": IMAGE, "image": 0 * IMAGE}
  extra = interleave.extra(BLOCKS, 2.0, given, KEYS)
  np.testing.assert_array_equal(extra, means(IMAGE))  # unscaled
  assert interleave.channels(3) == extra.shape[-1]


def test_random_holes():
  """A quarter are everything; the others neither that nor nothing; each by its key."""
  keys = tiny.keys(1, 400)
  holes = np.asarray(jax.jit(lambda k: condition.holes(k, 16, 24))(keys))
  assert holes.shape == (400, 16, 24)
  share = holes.mean((1, 2))
  assert 0.18 < (share == 1).mean() < 0.32
  assert 0.1 < share[share < 1].mean() < 0.6 and share.min() > 0
  np.testing.assert_array_equal(condition.holes(keys[7:8], 16, 24)[0], holes[7])
  some = np.asarray(condition.inpainting().extra(BLOCKS, 1.0, {"image": IMAGE}, KEYS))
  assert (some[..., 1:][np.broadcast_to(some[..., :1] == 0, some[..., 1:].shape)]).any()
