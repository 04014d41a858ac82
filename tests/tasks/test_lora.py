"""Adapters start at the base, merge into it, move nothing of it, on every mesh."""

import dataclasses
import re

import jax
import numpy as np
import optax
import pytest

from gen_jax import sharding, tree
from gen_jax.tasks import lora
from gen_jax.train import state as states
from gen_jax.train import step as steps
from gen_jax.types import InputError
from tests import tiny

KERNELS = "kernel$"
TASKS = {
  "rows": (tiny.language_model(), tiny.text_batch(), KERNELS),
  "scanned": (tiny.language_model(scan_layers=True), tiny.text_batch(), KERNELS),
  "table": (tiny.language_model(), tiny.text_batch(), "embed/table|out/kernel"),
  "unet": (tiny.diffusion_task(), tiny.image_batch(), "unet/.*kernel$"),
}


@pytest.fixture(params=TASKS)
def case(request):
  """(adapted task, batch, weights of the base, adapters as if trained: no b is 0)."""
  task, batch, pattern = TASKS[request.param]
  adapted = lora.Adapted(task, lora.LoRA(3, 6.0, pattern))
  trained = tiny.weights(adapted.init, batch, seed=1)
  return adapted, batch, tiny.weights(task.init, batch), trained


def same(a, b):
  assert tree.sha256(jax.tree.map(np.asarray, a)) == tree.sha256(
    jax.tree.map(np.asarray, b)
  )


def test_step_zero_and_scale_zero_are_the_base_to_the_bit(case):
  adapted, batch, base, trained = case
  fresh = jax.jit(lambda: sharding.unbox(adapted.init(jax.random.key(1), batch)))()
  loss = jax.jit(
    lambda task, p, f: task.loss(p, f, batch, tiny.keys(), train=False),
    static_argnums=0,
  )
  want = loss(adapted.inner, base, {})
  same(loss(adapted, fresh, lora.Frozen(base, {})), want)
  off = lora.Adapted(adapted.inner, dataclasses.replace(adapted.config, alpha=0.0))
  same(loss(off, trained, lora.Frozen(base, {})), want)
  moved = loss(adapted, trained, lora.Frozen(base, {}))
  assert float(moved.loss.total) != float(want.loss.total)


def test_each_kernel_gets_a_product_of_rank_r_per_layer(case):
  _, _, base, adapters = case
  merged = lora.merge(base, adapters, 0.5)
  kernels = tree.flatten(base)
  touched = {p.rsplit("/", 1)[0] for p in tree.flatten(adapters)}
  for path, leaf in tree.flatten(merged).items():
    delta = np.asarray(leaf) - np.asarray(kernels[path])
    if path not in touched:
      assert not delta.any()
      continue
    layers = delta if path.startswith("blocks/") else delta[None]
    outputs = 2 if re.search("(query|key|value)/kernel$", path) else 1
    for layer in layers:
      matrix = layer.reshape(int(np.prod(layer.shape[: layer.ndim - outputs])), -1)
      assert np.linalg.matrix_rank(matrix, 1e-4) == min(3, *matrix.shape)


def test_number_of_parameters():
  """2 layers x (query, value) x r (D + N Dh), D = N Dh = 16."""
  adapted = lora.Adapted(tiny.language_model(), lora.LoRA(rank=3))
  adapters = jax.eval_shape(adapted.init, jax.random.key(0), tiny.text_batch())
  assert tree.size(sharding.unbox(adapters)) == 2 * 2 * 3 * (16 + 16)


def test_merged_equals_adapted_activations():
  """x (W + s a b) = x W + s (x a) b, on a kernel with heads and on its inverse."""
  generator = np.random.default_rng(0)

  def draw(*shape):
    return generator.normal(size=shape).astype(np.float32)

  x, w, a, b = draw(5, 8), draw(8, 2, 4), draw(8, 3), draw(3, 2, 4)
  merged = lora.merge({"w": w}, {"w": {"a": a, "b": b}}, 0.7)["w"]
  want = np.einsum("td,dnh->tnh", x, w) + 0.7 * np.einsum("tr,rnh->tnh", x @ a, b)
  np.testing.assert_allclose(np.einsum("td,dnh->tnh", x, merged), want, atol=1e-5)


@pytest.mark.parametrize(
  "name", ["scanned", pytest.param("unet", marks=pytest.mark.long)]
)
def test_training_moves_no_bit_of_the_base_and_agrees_on_meshes(name):
  task, batch, pattern = TASKS[name]
  adapted = lora.Adapted(task, lora.LoRA(2, 4.0, pattern))
  base = jax.tree.map(np.asarray, tiny.weights(task.init, batch))
  optimizer = optax.sgd(0.5)
  ends = []
  for sizes in ((8, 1, 1), (2, 2, 2)):
    layout = sharding.make_layout(*sizes, rules="fsdp_tensor")
    boxed = jax.eval_shape(task.init, jax.random.key(0), batch)
    frozen = lora.Frozen(jax.device_put(base, layout.of(boxed)), {})
    placed = layout.put(batch, tiny.BATCH)
    state = states.create(adapted, optimizer, placed, layout, 0, with_ema=False)
    step = steps.make_step(adapted, optimizer, layout=layout)
    step = steps.compile_step(step, state, layout)
    for _ in range(3):
      state, metrics = step(state, frozen, placed, {})
    same(frozen.base, base)
    assert float(metrics["grad_norm"].value) > 0
    ends.append(jax.device_get(state.params))
  for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)
  assert all(x.any() for x in jax.tree.leaves(ends[0]))


def test_patterns_that_cannot_be():
  task, batch = tiny.language_model(), tiny.text_batch()
  for pattern, says in (("nothing", "no parameter's path"), ("bias$", "no matrix")):
    adapted = lora.Adapted(task, lora.LoRA(pattern=pattern))
    with pytest.raises(InputError, match=says):
      jax.eval_shape(adapted.init, jax.random.key(0), batch)
  for keys, says in (
    ({"rank": 0}, "rank=0"),
    ({"alpha": -1.0}, "alpha=-1"),
    ({"pattern": "("}, "regular expression"),
  ):
    with pytest.raises(InputError, match=says):
      lora.LoRA(**keys)
