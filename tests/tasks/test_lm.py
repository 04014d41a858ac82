"""The language-modelling loss: closed forms of what it reports."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.tasks import losses
from gen_jax.types import Mean
from tests import tiny


def uniform(**changes):
  """A task whose model gives every token the same logit, and its parameters."""
  task = dataclasses.replace(tiny.language_model(), **changes)
  params = tiny.weights(task.init, tiny.text_batch())
  return task, jax.tree.map(jnp.zeros_like, params)


def loss(task, params, batch):
  run = jax.jit(lambda p, b: task.loss(p, {}, b, tiny.keys(), train=False))
  return run(params, batch)


def test_a_model_that_knows_nothing_has_perplexity_v():
  task, params = uniform()
  batch = tiny.text_batch()
  out = loss(task, params, batch)
  np.testing.assert_allclose(out.loss.value, math.log(32), rtol=1e-6)
  np.testing.assert_allclose(out.metrics["perplexity"].value, 32, rtol=1e-5)
  counted = (np.arange(32) % 5)[batch["targets"]] * batch["weights"]
  bits = batch["weights"].sum() * 5 / counted.sum()  # log2 32 = 5 per token
  np.testing.assert_allclose(out.metrics["bits_per_byte"].value, bits, rtol=1e-5)


def test_perplexity_of_parts_is_the_perplexity_of_the_whole():
  task, params = uniform()
  params = jax.tree.map(lambda x: x + 0.1, params)
  batch = tiny.text_batch()
  halves = [
    loss(task, params, {k: v[rows] for k, v in batch.items()})
    for rows in (slice(3), slice(3, 8))
  ]
  together = jax.tree.map(
    lambda a, b: a + b, *halves, is_leaf=lambda x: isinstance(x, Mean)
  )
  for name, mean in loss(task, params, batch).metrics.items():
    np.testing.assert_allclose(together.metrics[name].value, mean.value, rtol=1e-5)


def test_z_loss_is_added_to_the_loss_alone():
  """With logits all 0, log Z = ln V."""
  plain, params = uniform()
  task, _ = uniform(z_loss=0.1)
  batch = tiny.text_batch()
  a, b = (loss(t, params, batch) for t in (plain, task))
  extra = 0.1 * math.log(32) ** 2
  np.testing.assert_allclose(b.loss.value - a.loss.value, extra, rtol=1e-4)
  jax.tree.map(np.testing.assert_array_equal, a.metrics, b.metrics)


def test_z_loss_gradient_is_two_log_z_times_the_softmax():
  logits = jax.random.normal(jax.random.key(0), (1, 1, 5))
  targets = jnp.zeros((1, 1), jnp.int32)

  def penalty(x):
    return jnp.square(losses.score(x, targets).log_z).sum()

  grad = jax.grad(penalty)(logits)
  log_z = jax.nn.logsumexp(logits)
  np.testing.assert_allclose(grad, 2 * log_z * jax.nn.softmax(logits), rtol=1e-5)


@pytest.mark.parametrize("tied_head", [True, False])
def test_logits_in_chunks_change_nothing_and_never_exist_whole(tied_head):
  whole = tiny.language_model(tied_head=tied_head)
  chunked = tiny.language_model(tied_head=tied_head, head_chunk=4)
  whole, chunked = (dataclasses.replace(t, z_loss=0.1) for t in (whole, chunked))
  batch = tiny.text_batch()
  params = tiny.weights(whole.init, batch)

  def gradient(task):
    def total(params):
      out = task.loss(params, {}, batch, tiny.keys(), train=False)
      return out.loss.total, out.metrics

    return jax.jit(jax.value_and_grad(total, has_aux=True))

  logits = "tensor<8x12x32xf32>"
  assert logits in gradient(whole).lower(params).as_text()
  assert logits not in gradient(chunked).lower(params).as_text()
  want, got = gradient(whole)(params), gradient(chunked)(params)

  def close(a, b):
    return np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-5)

  jax.tree.map(close, got, want)
