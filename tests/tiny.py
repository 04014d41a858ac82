"""Tiny tasks and batches that several test files train, shard and sample."""

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import sharding, tree
from gen_jax.diffusion import codec, corrupt, parameterisation, schedule, weighting
from gen_jax.models import text_encoder, transformer, unet
from gen_jax.tasks import conditioning, diffusion, lm

BATCH = 8


def language_model(**changes) -> lm.LanguageModel:
  """V = 32, D = 16, L = 2."""
  config = dict(vocab_size=32, max_length=24, num_layers=2, width=16, num_heads=4)
  model = transformer.Transformer(transformer.Config(**{**config, **changes}))
  return lm.LanguageModel(model, np.arange(32, dtype=np.int32) % 5)


def text_batch(seed: int = 0, length: int = 12) -> dict[str, np.ndarray]:
  """A batch whose rows have different numbers of targets."""
  generator = np.random.default_rng(seed)
  tokens = generator.integers(0, 32, (BATCH, length + 1)).astype(np.int32)
  lengths = 1 + np.arange(BATCH) * (length - 1) // (BATCH - 1)
  weights = (np.arange(length) < lengths[:, None]).astype(np.float32)
  return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


def text_conditioning(config: text_encoder.Config) -> conditioning.Text:
  """Captions of as many tokens as the encoder reads; the empty one has one."""
  tokens = np.zeros((1, config.max_length), np.int32)
  mask = np.arange(config.max_length)[None] < 1
  null = conditioning.Caption(tokens, mask)
  return conditioning.Text(text_encoder.TextEncoder(config), null)


def diffusion_task(**changes) -> diffusion.Diffusion:
  """8x8 grey images, captions of 4 tokens out of 16."""
  fields = dict(
    network=unet.UNet(unet.Config(1, 8, (1,), 1, (), num_heads=2, num_groups=4)),
    conditioning=text_conditioning(text_encoder.Config(16, 4, 1, 8, 2)),
    schedule=schedule.Cosine(),
    target=parameterisation.V(),
    weighting=weighting.Unit(),
    time_sampler=corrupt.UniformTime(),
    codec=codec.identity(),
  )
  return diffusion.Diffusion(**{**fields, **changes})


def image_batch(seed: int = 0) -> dict[str, np.ndarray]:
  """Images and captions; the last two examples do not count."""
  generator = np.random.default_rng(seed)
  return {
    "image": generator.uniform(-1, 1, (BATCH, 8, 8, 1)).astype(np.float32),
    "caption": generator.integers(0, 16, (BATCH, 4)).astype(np.int32),
    "caption_mask": np.arange(4) < generator.integers(1, 5, (BATCH, 1)),
    "weights": (np.arange(BATCH) < BATCH - 2).astype(np.float32),
  }


def weights(init, *inputs, seed: int = 0):
  """Random parameters in the place of init(key, *inputs): nothing is 0 or compiled."""
  draw = np.random.default_rng(seed)

  def one(path, x):
    centre = float(path.endswith("scale"))
    return jnp.asarray(draw.normal(centre, 0.2, x.shape), x.dtype)

  shapes = jax.eval_shape(init, jax.random.key(0), *inputs)
  return tree.map_with_path(one, sharding.unbox(shapes))


def keys(seed: int = 0, num: int = BATCH) -> jax.Array:
  """Keys [num]."""
  return jax.random.split(jax.random.key(seed), num)
