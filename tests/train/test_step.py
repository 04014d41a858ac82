"""The step: sums travel, meshes and microbatches change nothing, bad steps are void."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax import sharding, tree
from gen_jax.models import autoencoder, dit, labels, text_encoder, unet
from gen_jax.nn import kernels
from gen_jax.tasks import autoencoder as autoencoding
from gen_jax.tasks import conditioning
from gen_jax.train import optim
from gen_jax.train import state as states
from gen_jax.train import step as steps
from tests import tiny


def autoencoder_task():
  config = autoencoder.Config(1, 2, 8, (1, 2), 1, 4)  # with attention of a single head
  return autoencoding.Autoencode(autoencoder.Autoencoder(config), kl_weight=0.01)


def diffusion_task():
  """Eight heads everywhere, which eight devices share."""
  return tiny.diffusion_task(
    network=unet.UNet(unet.Config(1, 8, (1,), 1, (), num_heads=8, num_groups=4)),
    conditioning=tiny.text_conditioning(text_encoder.Config(16, 4, 1, 8, 8)),
  )


def dit_task():
  """Sixteen patches, and more classes than a mesh divides."""
  network = dit.DiT(dit.Config(1, 8, 2, 32, 2, 8))
  encoder = labels.LabelEncoder(labels.Config(4, 32))
  classes = conditioning.ClassLabels(encoder, 4)
  return tiny.diffusion_task(network=network, conditioning=classes)


def labelled_batch(seed=0):
  batch = tiny.image_batch(seed)
  return {**batch, "label": np.arange(tiny.BATCH, dtype=np.int32) % 4}


def language_model(**changes):
  return tiny.language_model(num_heads=8, **changes)


TASKS = {
  "lm": (language_model, tiny.text_batch),
  "diffusion": (diffusion_task, tiny.image_batch),
  "dit": (dit_task, labelled_batch),
  "autoencoder": (autoencoder_task, tiny.image_batch),
}
MESHES = {
  "1x1x1": (1, 1, 1),
  "8x1x1": (8, 1, 1),
  "1x8x1": (1, 8, 1),
  "1x1x8": (1, 1, 8),
  "2x2x2": (2, 2, 2),
  "context": (1, 2, 1, 4),  # a text model sends its keys round
}


def optimizer():
  return optim.adamw(optim.cosine(3e-3, 40, warmup_steps=2))


def make(task, batch, mesh=(1, 1, 1), with_ema=True, **changes):
  devices = jax.devices()[: int(np.prod(mesh))]
  layout = sharding.make_layout(*mesh, rules="fsdp_tensor", devices=devices)
  state = states.create(task, optimizer(), batch, layout, 0, with_ema=with_ema)
  step = steps.make_step(task, optimizer(), layout=layout, decay=0.9, **changes)
  return layout, state, steps.compile_step(step, state, layout)


@pytest.fixture(scope="module", params=TASKS)
def kind(request):
  return request.param


@pytest.fixture(scope="module")
def params(kind):
  make_task, make_batch = TASKS[kind]
  task, batch = make_task(), make_batch()
  return tiny.weights(task.init, batch)


def test_microbatches_equal_the_full_batch(kind, params):
  """With unequal numbers of targets per row, where a mean of means would be wrong."""
  make_task, make_batch = TASKS[kind]
  task, batch = make_task(), make_batch()

  def grads(num):
    def fn(p, b, k):
      return steps.gradients(task, p, {}, b, k, num)

    return jax.jit(fn)(params, batch, tiny.keys())

  full, full_out = grads(1)
  # Relative to the largest gradient: some are zero but for rounding (a key's bias).
  atol = 1e-5 * max(float(np.abs(g).max()) for g in jax.tree.leaves(full))
  parts, out = grads(4)
  for path, g in tree.flatten(full).items():
    np.testing.assert_allclose(tree.flatten(parts)[path], g, atol=atol, err_msg=path)
  np.testing.assert_allclose(out.loss.total, full_out.loss.total, rtol=1e-5)
  assert out.loss.count == full_out.loss.count == np.sum(batch["weights"])


@pytest.mark.parametrize(
  "kind", ["lm", *(pytest.param(k, marks=pytest.mark.long) for k in TASKS if k != "lm")]
)
def test_every_mesh_starts_alike_and_trains_alike(kind):
  """Initial parameters to the bit, 20 losses to 1e-5."""
  make_task, make_batch = TASKS[kind]
  results = {}
  for name, mesh in MESHES.items():
    around = (
      {"attention_impl": kernels.ring} if (kind, name) == ("lm", "context") else {}
    )
    task = make_task(**around)
    layout, state, step = make(task, make_batch(), mesh, with_ema=False)
    start, losses = tree.sha256(state.params), []
    for i in range(20):
      state, metrics = step(state, {}, layout.put(make_batch(i), tiny.BATCH), {})
      losses.append(float(metrics["loss"].value))
    results[name] = start, losses
    if name == "1x8x1":  # the optimiser's moments lie like their parameters
      spread = [
        x
        for x in jax.tree.leaves(state.opt_state)
        if not x.sharding.is_fully_replicated
      ]
      assert len(spread) == 2 * sum(
        not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.params)
      )
      assert spread
  start, losses = results["1x1x1"]
  assert losses[-1] != losses[0]
  for name, (other_start, other_losses) in results.items():
    assert other_start == start, name
    np.testing.assert_allclose(other_losses, losses, atol=1e-5, err_msg=name)


def test_second_step_neither_recompiles_nor_transfers():
  layout, state, step = make(tiny.language_model(), tiny.text_batch())
  batches = [layout.put(tiny.text_batch(i), tiny.BATCH) for i in range(3)]
  state, _ = step(state, {}, batches[0], {})
  with jax.transfer_guard("disallow"):
    for batch in batches[1:]:
      state, _ = step(state, {}, batch, {})
  assert step._cache_size() == 1


def test_a_step_that_is_not_finite_changes_nothing_nor_do_those_after_it():
  """Steps are on their way before the loss of the one before them is known."""
  task = tiny.language_model()
  layout, state, step = make(task, tiny.text_batch())
  poisoned = jax.tree.map(lambda x: x, state.params)
  poisoned["final_norm"]["scale"] = poisoned["final_norm"]["scale"].at[0].set(jnp.nan)
  state = dataclasses.replace(state, params=poisoned)
  good = jax.device_get(state.params)
  good["final_norm"]["scale"] = np.ones_like(good["final_norm"]["scale"])
  before = tree.sha256(jax.device_get(state))
  state, metrics = step(state, {}, layout.put(tiny.text_batch(), tiny.BATCH), {})
  assert not np.isfinite(metrics["loss"].value)
  assert tree.sha256(jax.device_get(states.standing(state))) == before
  good = jax.tree.map(
    lambda x, old: jax.device_put(x, old.sharding), good, state.params
  )
  state = dataclasses.replace(state, params=good)
  before = tree.sha256(jax.device_get(state))
  for i in range(2):
    state, metrics = step(state, {}, layout.put(tiny.text_batch(i), tiny.BATCH), {})
    assert np.isfinite(metrics["loss"].value)
  assert tree.sha256(jax.device_get(state)) == before
  assert int(states.standing(state).step) == 0 > int(state.step)


def test_one_sgd_step_is_the_gradient_of_the_mean():
  """new = old - rate * grad(total / count), EMA with warm-up of the new weights."""
  task, batch = tiny.language_model(), tiny.text_batch()
  layout = sharding.make_layout(1, 1, 1, devices=jax.devices()[:1])
  sgd = optax.sgd(0.5)
  state = states.create(task, sgd, batch, layout, 0, with_ema=True)
  step = jax.jit(steps.make_step(task, sgd, layout=layout, decay=0.99))

  def mean(params):
    out = task.loss(params, {}, batch, tiny.keys(), train=False)
    return out.loss.total / out.loss.count

  grads = jax.jit(jax.grad(mean))(state.params)
  new, metrics = step(state, {}, layout.put(batch, tiny.BATCH), {})
  expected = jax.tree.map(lambda p, g: p - 0.5 * g, state.params, grads)
  for path, value in tree.flatten(new.params).items():
    np.testing.assert_allclose(value, tree.flatten(expected)[path], atol=1e-6)
  ema = jax.tree.map(lambda old, p: 0.1 * old + 0.9 * p, state.params, new.params)
  for path, value in tree.flatten(new.ema).items():
    np.testing.assert_allclose(value, tree.flatten(ema)[path], atol=1e-6)
  norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
  np.testing.assert_allclose(metrics["grad_norm"].value, norm, rtol=1e-5)
  assert new.step == 1


@pytest.mark.parametrize("warmup", [2.0, 3.0, 12.0])
def test_an_average_that_only_warms_up_weighs_step_i_as_a_power(warmup):
  """Weights after i steps count as (i + 1) (i + 2) ... (i + warmup - 2)."""
  num = 40
  found = np.zeros(num + 1)
  found[0] = 1.0  # initial weights
  for i in range(num):
    kept = float(steps.ema_decay(1 - 1e-6, jnp.int32(i), warmup))
    found *= kept
    found[i + 1] = 1.0 - kept
  wanted = np.ones(num + 1)
  for shift in range(1, int(warmup) - 1):
    wanted *= np.arange(num + 1) + shift
  np.testing.assert_allclose(found, wanted / wanted.sum(), rtol=1e-4)


def test_weight_decay_reaches_kernels_and_tables_alone():
  params = {
    "dense": {"kernel": jnp.ones(2), "bias": jnp.ones(2)},
    "embed": {"table": jnp.ones(2)},
    "norm": {"scale": jnp.ones(2)},
  }
  tx = optim.adamw(optax.constant_schedule(0.1), weight_decay=0.5)
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zeros, tx.init(params), params)
  changed = {p: bool((u != 0).any()) for p, u in tree.flatten(updates).items()}
  assert changed == {
    "dense/kernel": True,
    "dense/bias": False,
    "embed/table": True,
    "norm/scale": False,
  }
