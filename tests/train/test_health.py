"""The look before the first step: sound where all is well, loud where it is not."""

import dataclasses
import math

import jax
import numpy as np
import optax
import pytest

from gen_jax import sharding
from gen_jax.tasks import base
from gen_jax.train import health
from gen_jax.train import state as states
from gen_jax.types import Mean
from tests import tiny


def examine(task, batch, **changes):
  layout = sharding.make_layout(1, 1, 1, devices=jax.devices()[:1])
  state = states.create(task, optax.sgd(0.1), batch, layout, 0, with_ema=False)
  fields = dict(num_microbatches=1, expected_loss=math.log(32), num_items=1e5)
  fields = {**fields, **changes}
  gradient = health.gradients(task, layout)
  return health.examine(
    gradient, state, {}, layout.put(batch, tiny.BATCH), {}, layout, **fields
  )


def test_a_sound_run_warns_of_nothing():
  batch = tiny.text_batch()
  found = examine(tiny.language_model(dropout=0.5), batch)
  assert found.loss == pytest.approx(math.log(32), rel=0.02)
  assert found.microbatch_error < 1e-5
  assert found.padding == np.mean(batch["weights"] == 0)
  assert found.without_gradient == ()
  assert set(found.grad_norm) == {
    "embed",
    "position",
    "block_0",
    "block_1",
    "final_norm",
  }
  assert not any("WARNING" in line for line in found.lines("tokens"))


@dataclasses.dataclass(frozen=True)
class Broken:
  """Takes the mean of each microbatch where a sum is due."""

  task: base.Task

  def init(self, key, batch):
    return self.task.init(key, batch)

  def loss(self, params, frozen, batch, keys, *, train):
    out = self.task.loss(params, frozen, batch, keys, train=train)
    return base.LossOut(Mean(out.loss.value, 1.0), out.metrics)


def test_means_where_sums_are_due_are_found():
  """The rows of the batch count differently, so a mean of means is another gradient."""
  found = examine(Broken(tiny.language_model()), tiny.text_batch())
  assert found.microbatch_error > 5e-2
  assert any("microbatches" in x and "WARNING" in x for x in found.lines("tokens"))


def test_a_wrong_start_and_a_deaf_parameter_are_found():
  task = tiny.language_model()
  found = examine(task, tiny.text_batch(), expected_loss=math.log(64))
  assert any("fresh model" in line for line in found.lines("tokens"))

  class Deaf(Broken):
    def init(self, key, batch):
      return {**self.task.init(key, batch), "spare": np.ones(3, np.float32)}

    def loss(self, params, frozen, batch, keys, *, train):
      params = {k: v for k, v in params.items() if k != "spare"}
      return self.task.loss(params, frozen, batch, keys, train=train)

  assert examine(Deaf(task), tiny.text_batch()).without_gradient == ("spare",)


def test_a_batch_that_cannot_be_cut_further_is_left_whole():
  found = examine(tiny.language_model(), tiny.text_batch(), num_microbatches=tiny.BATCH)
  assert found.microbatch_error is None
