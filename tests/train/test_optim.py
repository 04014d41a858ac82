"""Optimisers: which parameters each rule touches, and the laws of an update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import sharding, tree
from gen_jax.models import transformer
from gen_jax.train import optim
from tests import tiny

RATE = optim.constant(0.01, 10)


@pytest.fixture(scope="module")
def params():
  """Of two scanned layers; no leaf is zero."""
  task = tiny.language_model(scan_layers=True)
  init = jax.jit(task.init)(jax.random.key(0), tiny.text_batch())
  return jax.tree.map(lambda x: x + 0.1, sharding.unbox(init))


def update(optimizer, params, gradient):
  @jax.jit
  def run(params, gradient):
    return optimizer.update(gradient, optimizer.init(params), params)[0]

  return tree.flatten(run(params, gradient))


@pytest.mark.parametrize("make", [optim.adamw, optim.lion, optim.muon])
def test_weight_decay_touches_kernels_and_tables_alone(make, params):
  """With zero gradients only the decay is left: -rate * decay * parameter."""
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates = update(make(RATE, weight_decay=0.5), params, zeros)
  for path, x in tree.flatten(params).items():
    decayed = path.endswith(("kernel", "table"))
    np.testing.assert_allclose(updates[path], -0.005 * x * decayed, atol=1e-7)


def test_muon_steps_are_orthogonal_matrices_layer_by_layer(params):
  """Singular values from 0.2 to 1 all become about 0.2 sqrt(max(shape)) times rate."""
  generator = np.random.default_rng(0)
  matrices = {
    "attention/query/kernel": (16, 16),  # [D, N Dh]
    "attention/out/kernel": (16, 16),  # [N Dh, D]
    "mlp/up/kernel": (16, 64),
    "mlp/down/kernel": (64, 16),
  }

  def gradient(path, x):
    shape = matrices.get(path.removeprefix("blocks/"))
    if shape is None:
      return generator.normal(size=x.shape).astype(np.float32)
    u, _, v = np.linalg.svd(generator.normal(size=(2, *shape)), full_matrices=False)
    product = (u * np.linspace(0.2, 1.0, 16)) @ v
    return product.reshape(x.shape).astype(np.float32)

  gradients = tree.map_with_path(gradient, params)
  updates = update(optim.muon(RATE, weight_decay=0.0), params, gradients)
  for name, shape in matrices.items():
    for layer in np.asarray(updates[f"blocks/{name}"]).reshape(2, *shape):
      values = np.linalg.svd(layer, compute_uv=False) / (0.002 * max(shape) ** 0.5)
      assert (values > 0.6).all() and (values < 1.3).all()
  adam = update(optim.adamw(RATE, weight_decay=0.0), params, gradients)
  for path in ("embed/table", "final_norm/scale"):
    np.testing.assert_allclose(updates[path], adam[path], rtol=1e-4)


def test_muon_covers_every_matrix_of_the_gated_transformer():
  from gen_jax.nn import embed, mlp, norms  # the family with the most kinds of kernel

  model = transformer.Transformer(
    transformer.Config(
      32, 8, 1, 16, 4, 2, norm=norms.RMSNorm, mlp=mlp.GatedMLP, use_bias=False,
      position=None, rotary=embed.Rotary(), tied_head=False,
    )
  )  # fmt: skip
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
  paths = tree.flatten(sharding.unbox(shapes)["params"])
  left = {p for p, x in paths.items() if optim._muon_axes(p, x) is None}
  assert left == {
    "embed/table",
    "head/kernel",
    "final_norm/scale",
    "block_0/attention_norm/scale",
    "block_0/mlp_norm/scale",
  }
