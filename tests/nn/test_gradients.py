"""Hand-written gradients equal automatic ones, and the values equal jax.nn's."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import sharding, types
from gen_jax.cost import flops
from gen_jax.nn import attention, cpu, kernels, linear, mlp, norms


def value_and_gradient(fn, *args):
  out, pull = jax.vjp(fn, *args)
  seed = jax.random.normal(jax.random.key(9), out.shape, jnp.float32)
  return out, *pull(seed.astype(out.dtype))


def kv(key, value):
  """[B, S, K, Dh] as it is kept, [B, K, S, Dh]."""
  return attention.KV(jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2))


def assert_same(fn, reference, *args, is_exact=False):
  """is_exact: the reference is in float64, so that its own rounding does not count."""
  got, want = (
    jax.jit(lambda *a, f=f: value_and_gradient(f, *a)) for f in (fn, reference)
  )
  found = got(*args)
  with jax.enable_x64(is_exact):
    given = [x.astype(jnp.float64) for x in args] if is_exact else args
    wanted = want(*given)
  for a, b in zip(found, wanted, strict=True):
    assert b.dtype == (jnp.float64 if is_exact else jnp.float32)
    scale = float(jnp.abs(b).max())
    np.testing.assert_allclose(a / scale, b / scale, atol=2e-6)


def random(seed, *shape):
  return 2.0 * jax.random.normal(jax.random.key(seed), shape) + 0.5


def groups_of_two(x):
  return x.reshape(2, 12, 3, 2)


@pytest.mark.parametrize(
  "average, view, axes",
  [
    (norms.over_channels, lambda x: x, (-1,)),
    (norms.over_groups(3), groups_of_two, (1, 3)),
  ],
)
@pytest.mark.parametrize("centre", [True, False])
def test_standardise(average, view, axes, centre):
  def reference(x):
    y = view(x)
    y = y - y.mean(axes, keepdims=True) if centre else y
    return (y / jnp.sqrt((y**2).mean(axes, keepdims=True) + 1e-2)).reshape(x.shape)

  x = random(0, 2, 3, 4, 6)
  assert_same(lambda x: norms.standardise(x, average, 1e-2, centre), reference, x)


@pytest.mark.parametrize("rows", [(2, 3), (1, 1)])  # one row goes another way
@pytest.mark.parametrize("depth", [1, 2])
def test_product(rows, depth):
  x, kernel = random(0, *rows, *(4, 6)[-depth:]), random(1, *(4, 6)[-depth:], 5, 7)
  equation = "abd,def->abef" if depth == 1 else "abcd,cdef->abef"

  def reference(x, w):
    return jnp.einsum(equation, x, w)

  def product(x, w):
    return linear.product(x, w, depth)

  np.testing.assert_allclose(product(x, kernel), reference(x, kernel), rtol=1e-5)
  assert_same(product, reference, x, kernel)


def test_gelu():
  assert_same(mlp.gelu, jax.nn.gelu, random(0, 64))


# Chunks of 4 do not divide 9 keys, one of 16 holds them all.
ATTENDS = {
  "xla": attention.attend,
  "chunked": functools.partial(kernels.chunked, chunk=4),
  "one chunk": functools.partial(kernels.chunked, chunk=16),
}
SEGMENTS = np.array([[1] * 9, [1] * 6 + [2] * 3])
AT, SLOTS = np.arange(9)[:, None], np.arange(9)[None]
MASKS = {
  "everything": (attention.Mask(), np.ones((9, 9), bool)),
  "documents": (
    attention.Mask(segments=SEGMENTS, is_causal=True),
    (SEGMENTS[:, :, None] == SEGMENTS[:, None, :]) & (SLOTS <= AT),
  ),
  "window": (
    attention.Mask(is_causal=True, window=3),
    (SLOTS <= AT) & (SLOTS > AT - 3),
  ),
  "padding": (attention.Mask(np.arange(9)[None, None, None] < 5), SLOTS < 5),
}


@pytest.mark.parametrize(
  "mask, kv_heads", [*((m, 2) for m in MASKS), ("documents", 1), ("documents", 4)]
)
@pytest.mark.parametrize("attend", ATTENDS)
def test_attend(attend, mask, kv_heads):
  q = random(0, 2, 9, 4, 5)
  k, v = random(1, 2, 9, kv_heads, 5), random(2, 2, 9, kv_heads, 5)
  ours, table = MASKS[mask]
  table = np.broadcast_to(table, (2, 9, 9))[:, None]
  assert_same(
    lambda q, k, v: ATTENDS[attend](q, kv(k, v), ours),
    lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=table),
    *(q, k, v),
  )


def test_long_causal_rows_are_taken_in_blocks():
  """As many products as four blocks need, 5/8 of all; and the same values."""
  q, k, v = (random(i, 1, 256, 2, 4) for i in range(3))

  def ours(q, k, v):
    return attention.attend(q, kv(k, v), attention.Mask(is_causal=True))

  assert flops.count(ours, q, k, v) == 5 / 8 * 2 * 2 * 2 * 256**2 * 4
  reference = functools.partial(jax.nn.dot_product_attention, is_causal=True)
  assert_same(ours, reference, q, k, v, is_exact=True)


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize(
  "mask",
  [
    attention.EVERYTHING,
    attention.Mask(is_causal=True, window=9),
    attention.Mask(segments=np.repeat([[1] * 7 + [2] * 9, [1] * 16], 16, 1)),
  ],
)
def test_pieces_for_a_cpu_are_the_whole(mask, kv_heads, monkeypatch):
  """128 queries of one head at a time, where no gradient is asked for."""
  q = random(0, 2, 256, 4, 5)
  k, v = random(1, 2, 256, kv_heads, 5), random(2, 2, 256, kv_heads, 5) / 8

  def ours():
    return jax.jit(lambda q, k, v: attention.attend(q, kv(k, v), mask))

  expected = ours()(q, k, v)
  monkeypatch.setattr(cpu, "_SCORES", 128 * 256)
  assert "while" in ours().lower(q, k, v).as_text()
  np.testing.assert_allclose(ours()(q, k, v), expected, atol=1e-6)


@pytest.mark.parametrize("attend", ATTENDS)
def test_attend_to_everything_of_another_length(attend):
  q, k, v = random(0, 2, 3, 4, 5), random(1, 2, 7, 4, 5), random(2, 2, 7, 4, 5)
  assert_same(
    lambda q, k, v: ATTENDS[attend](q, kv(k, v), attention.EVERYTHING),
    jax.nn.dot_product_attention,
    *(q, k, v),
  )


def test_chunks_bound_the_memory():
  """Nothing of T x S anywhere: not forwards, not in the gradient, not kept for it."""
  length = 64
  q, k, v = (random(i, 1, length, 1, 4) for i in range(3))
  mask = attention.Mask(is_causal=True)

  def ours(q, k, v):
    return kernels.chunked(q, kv(k, v), mask, chunk=8)

  gradient = jax.jit(lambda *qkv: value_and_gradient(ours, *qkv))
  text = gradient.lower(q, k, v).as_text()
  assert f"{length}x8x" in text
  assert f"{length}x{length}x" not in text


def test_a_ring_of_devices_computes_the_same():
  """Queries of 4 slots stay where they are; 16 keys pass by, in chunks of 3."""
  layout = sharding.make_layout(2, 1, 1, 4)
  q = random(0, 2, 16, 4, 5)
  k, v = random(1, 2, 16, 2, 5), random(2, 2, 16, 2, 5)
  segments = np.array([[1] * 7 + [2] * 9, [1] * 16])
  masks = (
    attention.EVERYTHING,
    attention.Mask(segments=segments, is_causal=True),
    attention.Mask(is_causal=True, window=6),
  )
  for mask in masks:

    def ours(q, k, v, mask=mask):
      with sharding.use(layout):
        return kernels.ring(q, kv(k, v), mask, chunk=3)

    assert_same(
      ours, lambda q, k, v, mask=mask: attention.attend(q, kv(k, v), mask), q, k, v
    )


@pytest.mark.parametrize(
  "mask",
  [
    attention.Mask(is_causal=True, segments=np.repeat([[1, 2]], 128, 1)),
    attention.Mask(is_causal=True, window=100),
  ],
)
@pytest.mark.parametrize("mesh", [(1, 1, 2), (1, 1, 1, 2), (1, 1, 2, 2)])
def test_splash_attention_interpreted(mask, mesh):
  """The TPU's kernel, operation by operation, where heads or sequences are cut."""
  devices = jax.devices()[: math.prod(mesh)]
  layout = sharding.make_layout(*mesh, rules="fsdp_tensor", devices=devices)
  q = random(0, 1, 256, 4, 128)
  k, v = random(1, 1, 256, 2, 128), random(2, 1, 256, 2, 128)

  def ours(q, k, v):
    with sharding.use(layout):
      return kernels.splash(q, kv(k, v), mask, block=128, interpret=True)

  assert_same(ours, lambda q, k, v: attention.attend(q, kv(k, v), mask), q, k, v)


@pytest.mark.parametrize("attend", [kernels.splash, kernels.ring])
def test_a_mask_that_a_kernel_cannot_take_is_refused(attend):
  q = k = random(0, 1, 128, 1, 4)
  mask = attention.Mask(np.ones((1, 1, 128, 128), bool))
  with pytest.raises(types.InputError, match="chunked takes any"):
    attend(q, kv(k, k), mask)


@pytest.mark.parametrize("attend", [kernels.splash, kernels.cudnn])
def test_a_kernel_of_another_platform_is_refused(attend):
  q = k = random(0, 1, 128, 1, 4)
  with sharding.use(sharding.make_layout(1, devices=jax.devices()[:1])):
    with pytest.raises(types.InputError, match="only, and this mesh is of cpus"):
      attend(q, kv(k, k), attention.Mask(is_causal=True))
