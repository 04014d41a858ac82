"""Token filters against numpy written from their definitions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import types
from gen_jax.decoding import filters, generate

LOGITS = np.random.default_rng(0).normal(0, 2, (16, 11)).astype(np.float32)
PROBS = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)


def kept_by(filter_):
  out = np.asarray(filter_(jnp.asarray(LOGITS)))
  kept = np.isfinite(out)
  np.testing.assert_array_equal(out[kept], LOGITS[kept])
  return kept


@pytest.mark.parametrize("k", [1, 3, 11, 50])
def test_top_k_keeps_the_k_likeliest(k):
  rank = (-LOGITS).argsort(-1).argsort(-1)
  np.testing.assert_array_equal(kept_by(filters.top_k(k)), rank < k)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 1.0])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p):
  kept = kept_by(filters.top_p(p))
  for row in range(len(LOGITS)):
    chosen, rest = PROBS[row][kept[row]], PROBS[row][~kept[row]]
    assert chosen.sum() >= p - 1e-6
    assert chosen.sum() - chosen.min() < p + 1e-6
    assert rest.size == 0 or rest.max() <= chosen.min()


def test_min_p_is_relative_to_the_likeliest():
  kept = kept_by(filters.min_p(0.2))
  np.testing.assert_array_equal(kept, PROBS >= 0.2 * PROBS.max(-1, keepdims=True))


def test_chain_runs_from_left_to_right():
  hot = filters.chain(filters.temperature(4.0), filters.top_p(0.5))
  cold = filters.chain(filters.top_p(0.5), filters.temperature(4.0))
  expected = filters.top_p(0.5)(jnp.asarray(LOGITS) / 4.0)
  np.testing.assert_array_equal(hot(jnp.asarray(LOGITS)), expected)
  np.testing.assert_array_equal(
    cold(jnp.asarray(LOGITS)), filters.top_p(0.5)(jnp.asarray(LOGITS)) / 4.0
  )


SEEN = np.random.default_rng(1).random(LOGITS.shape) < 0.3


def test_repetition_divides_above_zero_and_multiplies_below():
  out = filters.repetition(1.7, jnp.asarray(SEEN))(jnp.asarray(LOGITS))
  punished = np.where(LOGITS > 0, LOGITS / 1.7, LOGITS * 1.7)
  np.testing.assert_allclose(out, np.where(SEEN, punished, LOGITS), rtol=1e-6)
  assert (np.asarray(out)[SEEN] < LOGITS[SEEN]).all()


@pytest.mark.parametrize("order", list(itertools.permutations(generate.FILTERS))[::7])
def test_sampling_block_is_its_filters_in_its_order(order):
  fields = dict(temperature=0.7, top_k=5, top_p=0.8, min_p=0.1, repetition_penalty=1.5)
  x, seen = jnp.asarray(LOGITS), jnp.asarray(SEEN)
  by_hand = {
    "repetition": filters.repetition(1.5, seen),
    "temperature": filters.temperature(0.7),
    "top_k": filters.top_k(5),
    "top_p": filters.top_p(0.8),
    "min_p": filters.min_p(0.1),
  }
  want = filters.chain(*(by_hand[name] for name in order))(x)
  got = generate.Sampling(order=order, **fields).filter(x, seen)
  np.testing.assert_array_equal(got, want)


def test_plain_and_greedy_sampling():
  x, seen = jnp.asarray(LOGITS), jnp.asarray(SEEN)
  np.testing.assert_array_equal(generate.Sampling().filter(x, seen), x)
  keys = jax.random.split(jax.random.key(0), len(x))
  greedy = generate.Sampling(temperature=0.0).draw(x, seen, keys)
  np.testing.assert_array_equal(greedy, np.argmax(LOGITS, -1))
  drawn = generate.Sampling().draw(x, seen, keys)
  assert (drawn != greedy).any() and drawn.dtype == jnp.int32


@pytest.mark.parametrize(
  "field, value",
  [
    ("temperature", -1.0),
    ("top_p", 0.0),
    ("top_p", 1.5),
    ("top_k", 0),
    ("min_p", 1.0),
    ("repetition_penalty", 0.5),
  ],
)
def test_values_outside_their_range_are_refused(field, value):
  with pytest.raises(types.InputError, match=f"{field}={value}"):
    generate.Sampling(**{field: value})


def test_thresholds_are_traced():
  apply = jax.jit(lambda x, p, t: filters.top_p(p)(filters.temperature(t)(x)))
  for p, t in ((0.5, 1.0), (0.9, 0.7)):
    apply(jnp.asarray(LOGITS), p, t)
  assert apply._cache_size() == 1
