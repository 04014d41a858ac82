"""Each task overfits a tiny real batch, and does not when its labels are shifted.

The broken run trains on the same data with labels moved to the next row, and both are
judged on the right ones: a task that ignored its labels would fail the first assertion,
a test that anything passes the second.
"""

import dataclasses

import jax
import numpy as np
import optax
import pytest
import sklearn.datasets

from gen_jax import sharding
from gen_jax.data import embedded, tokenizers
from gen_jax.diffusion import corrupt
from gen_jax.models import unet
from gen_jax.train import state as states
from gen_jax.train import step as steps
from tests import tiny


def train(task, batches, num_steps, rate):
  """Parameters after num_steps on each of the batches, from the same start."""
  layout = sharding.make_layout(1, 1, 1, devices=jax.devices()[:1])
  optimizer = optax.adam(rate)

  def create():
    return states.create(task, optimizer, batches[0], layout, 0, with_ema=False)

  step = steps.make_step(task, optimizer, layout=layout)
  step = steps.compile_step(step, create(), layout)
  trained = []
  for batch in batches:
    state = create()
    for _ in range(num_steps):
      state, _ = step(state, {}, batch, {})
    trained.append(state.params)
  return trained


def loss(task, params, batch):
  run = jax.jit(lambda p, b: task.loss(p, {}, b, tiny.keys(), train=False).loss)
  return float(run(params, batch).value)


def test_language_model():
  text = "".join(embedded.Pydoc().documents("train"))[:2000]
  tokenizer = tokenizers.train_bpe([text], 257)
  tokens = np.asarray(tokenizer.encode(text))[: tiny.BATCH * 17].reshape(tiny.BATCH, 17)
  batch = {
    "inputs": tokens[:, :-1],
    "targets": tokens[:, 1:],
    "weights": np.ones((tiny.BATCH, 16), np.float32),
  }
  task = tiny.language_model(vocab_size=257, width=32)
  task = dataclasses.replace(task, token_bytes=tokenizer.token_bytes(257))
  shifted = {**batch, "targets": np.roll(batch["targets"], 1, axis=0)}
  good, broken = train(task, (batch, shifted), 300, 3e-3)
  assert loss(task, good, batch) < 0.3
  assert loss(task, broken, batch) > 2.0


@pytest.mark.long
def test_diffusion_learns_which_image_a_caption_means():
  """At high noise only the caption says which of eight digits it was."""
  digits = sklearn.datasets.load_digits()
  first = [int(np.flatnonzero(digits.target == d)[0]) for d in range(tiny.BATCH)]
  images = digits.images[first, :, :, None].astype(np.float32) / 8.0 - 1.0
  captions = np.stack([np.arange(tiny.BATCH)] + [np.full(tiny.BATCH, 15)] * 3, axis=1)
  batch = {
    "image": images,
    "caption": captions.astype(np.int32),
    "caption_mask": np.ones((tiny.BATCH, 4), bool),
    "weights": np.ones(tiny.BATCH, np.float32),
  }
  task = tiny.diffusion_task(
    network=unet.UNet(unet.Config(1, 16, (1,), 1, (), num_heads=2, num_groups=4)),
    time_sampler=corrupt.UniformTime(0.85, 0.95),
    drop_prob=0.0,
  )
  shifted = {**batch, "caption": np.roll(batch["caption"], 1, axis=0)}
  good, broken = train(task, (batch, shifted), 200, 4e-3)
  spread = float(images.var(axis=0).mean())  # what guessing the mean image costs
  assert loss(task, good, batch) < 0.3 * spread
  assert loss(task, broken, batch) > spread
