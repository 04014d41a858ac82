"""Hand-written gradients equal automatic ones, and the values equal jax.nn's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.nn import attention, mlp, norms


def value_and_gradient(fn, *args):
  out, pull = jax.vjp(fn, *args)
  seed = jax.random.normal(jax.random.key(9), out.shape, out.dtype)
  return out, *pull(seed)


def kv(key, value):
  """[B, S, K, Dh] as it is kept, [B, K, S, Dh]."""
  return attention.KV(jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2))


def assert_same(fn, reference, *args):
  got, want = (
    jax.jit(lambda *a, f=f: value_and_gradient(f, *a)) for f in (fn, reference)
  )
  for a, b in zip(got(*args), want(*args), strict=True):
    scale = float(jnp.abs(b).max())
    np.testing.assert_allclose(a / scale, b / scale, atol=2e-6)


def random(seed, *shape):
  return 2.0 * jax.random.normal(jax.random.key(seed), shape) + 0.5


@pytest.mark.parametrize("axes", [(-1,), (1, 3)])
@pytest.mark.parametrize("centre", [True, False])
def test_standardise(axes, centre):
  def reference(x):
    x = x - x.mean(axes, keepdims=True) if centre else x
    return x / jnp.sqrt((x**2).mean(axes, keepdims=True) + 1e-2)

  x = random(0, 2, 3, 4, 5)
  assert_same(lambda x: norms.standardise(x, axes, 1e-2, centre), reference, x)


def test_gelu():
  assert_same(mlp.gelu, jax.nn.gelu, random(0, 64))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("num_blocks", [1, 4])
def test_attend(kv_heads, num_blocks):
  q = random(0, 2, 9, 4, 5)
  k, v = random(1, 2, 9, kv_heads, 5), random(2, 2, 9, kv_heads, 5)
  mask = np.tril(np.ones((2, 1, 9, 9), bool))
  mask[1, 0, 6:, :3] = False  # a second document

  def ours(q, k, v):
    return attention.attend(q, kv(k, v), mask, num_blocks=num_blocks)

  def reference(q, k, v):
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")

  assert_same(ours, reference, q, k, v)


def test_attend_to_everything_of_another_length():
  q, k, v = random(0, 2, 3, 4, 5), random(1, 2, 7, 4, 5), random(2, 2, 7, 4, 5)
  assert_same(
    lambda q, k, v: attention.attend(q, kv(k, v), None),
    jax.nn.dot_product_attention,
    q,
    k,
    v,
  )
