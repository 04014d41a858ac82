"""Means travel as sums."""

import jax.numpy as jnp
import numpy as np

from gen_jax import types


def test_sum_of_parts_is_the_mean_of_all():
  generator = np.random.default_rng(0)
  values = generator.normal(size=30).astype(np.float32)
  weights = generator.integers(0, 3, 30).astype(np.float32)
  whole = types.Mean.of(jnp.asarray(values), jnp.asarray(weights))
  parts = [
    types.Mean.of(jnp.asarray(values[a:b]), jnp.asarray(weights[a:b]))
    for a, b in ((0, 5), (5, 23), (23, 30))
  ]
  total = parts[0] + parts[1] + parts[2]
  np.testing.assert_allclose(
    total.value, np.average(values, weights=weights), rtol=1e-6
  )
  np.testing.assert_allclose(total.value, whole.value, rtol=1e-6)


def test_a_mean_is_the_same_to_the_bit_on_the_host():
  """Where metrics are fetched before they are divided: no program runs for that."""
  generator = np.random.default_rng(1)
  for total, count in generator.normal(size=(50, 2)).astype(np.float32) ** 2 * 100:
    on_host = types.Mean(total, count).value
    assert isinstance(on_host, np.float32)
    assert on_host == types.Mean(jnp.float32(total), jnp.float32(count)).value
  assert types.Mean(np.float32(0), np.float32(0)).value == 0.0


def test_what_does_not_count_cannot_spoil():
  mean = types.Mean.of(jnp.array([jnp.nan, 2.0]), jnp.array([0.0, 1.0]))
  assert mean.value == 2.0
  assert types.Mean.of(jnp.zeros(2), jnp.zeros(2)).value == 0.0
