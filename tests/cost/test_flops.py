"""FLOPs of jaxprs, against closed forms and against the gradients that JAX traces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from gen_jax.cost import flops

ROWS, WIDTH = 8, 16
PRODUCT = 2 * ROWS * WIDTH**2


def shapes(*sizes):
  return [jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes]


def layer(x, w):
  return jnp.tanh(x @ w)


def unscanned(x, ws):
  for w in ws:
    x = layer(x, w)
  return x


def scanned(x, ws):
  return jax.lax.scan(lambda x, w: (layer(x, w), None), x, ws)[0]


NETWORK = shapes(
  *((2, WIDTH, WIDTH), (3, WIDTH, WIDTH), (4, WIDTH, WIDTH), (ROWS, WIDTH))
)


def network(run, trained, before, after, x):
  """Frozen layers before and after trained ones, and one that no gradient enters."""
  h = run(run(x, before), trained)
  return run(h, after).sum() + layer(jax.lax.stop_gradient(h), after[0]).sum()


@pytest.mark.parametrize("wrap", [lambda fn: fn, jax.jit, jax.checkpoint])
@pytest.mark.parametrize("run, first", [(unscanned, 2), (scanned, 3)])
def test_frozen_layers_cost_what_gradients_ask_of_them(run, first, wrap):
  """1 before the trained ones, then 2 (to weights) and 3, and 2 (to x) after them.

  All turns of a loop are alike: there the first trained layer costs 3.
  """
  found = flops.with_gradient(lambda *args: network(wrap(run), *args), *NETWORK)
  assert found == (3 * 1 + first + 3 + 4 * 2 + 1) * PRODUCT
  grad = jax.value_and_grad(lambda *args: network(run, *args))
  assert found == flops.count(grad, *NETWORK)


def test_the_dearer_branch_counts():
  def fn(w, x):
    h = jax.lax.cond(x[0, 0] > 0, lambda x: x @ w, lambda x: layer(x @ w, w), x)
    return h.sum() + jax.lax.cond(h[0, 0] > 0, lambda: 1.0, lambda: 2.0)

  args = shapes((WIDTH, WIDTH), (ROWS, WIDTH))
  assert flops.count(fn, *args) == 2 * PRODUCT
  assert flops.with_gradient(fn, *args) == (2 + 3) * PRODUCT


def test_what_no_output_needs_costs_nothing():
  def first(x, w):
    return layer(x, w), layer(layer(x, w), w)

  args = shapes((ROWS, WIDTH), (WIDTH, WIDTH))
  assert flops.count(lambda *args: jax.jit(first)(*args)[0], *args) == PRODUCT


def test_kernels_count_by_their_grid():
  """A product of [64, 16] by [16, 8] in blocks of 16 rows, on each of 8 devices."""

  def kernel(x, y, out):
    out[...] = x[...] @ y[...]

  def product(x, y):
    return pl.pallas_call(
      kernel,
      grid=(4,),
      in_specs=[
        pl.BlockSpec((16, 16), lambda i: (i, 0)),
        pl.BlockSpec((16, 8), lambda i: (0, 0)),
      ],
      out_specs=pl.BlockSpec((16, 8), lambda i: (i, 0)),
      out_shape=jax.ShapeDtypeStruct((64, 8), jnp.float32),
    )(x, y)

  shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 16), (16, 8))]
  work = 2 * 64 * 16 * 8
  assert flops.kernels(lambda x, y: product(x, y) @ y.T, *shapes) == work
  assert flops.count(lambda x, y: product(x, y) @ y.T, *shapes) == 2 * work

  def looped(x, y):
    return jax.lax.map(lambda _: product(x, y), np.arange(3))

  assert flops.kernels(looped, *shapes) == 3 * work


def test_attention_by_cudnn_costs_what_its_two_products_do(monkeypatch):
  fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
  monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
  monkeypatch.setattr(fused, "check_compute_capability", lambda _: True)
  q = jax.ShapeDtypeStruct((2, 128, 4, 64), jnp.bfloat16)
  k = jax.ShapeDtypeStruct((2, 256, 4, 64), jnp.bfloat16)

  def attend(implementation):
    def loss(arrays):
      out = jax.nn.dot_product_attention(*arrays, implementation=implementation)
      return jnp.sum(out.astype(jnp.float32))

    return loss

  for measure in (flops.count, flops.with_gradient):
    assert measure(attend("cudnn"), (q, k, k)) == measure(attend("xla"), (q, k, k))
  product = 2 * 2 * 128 * 256 * 4 * 64
  assert flops.count(jax.grad(attend("cudnn")), (q, k, k)) == (2 + 5) * product
