"""muP's rates: which leaves have which, that decay keeps its own, what is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax import sharding, tree
from gen_jax.models import dit, text_encoder, transformer, unet
from gen_jax.nn import embed, mlp, norms
from gen_jax.tasks import lora
from gen_jax.train import mup, optim
from gen_jax.types import InputError
from tests import tiny

RATE = optim.constant(0.01, 10)
M = 4  # width / base width


def boxed(task, batch):
  return jax.eval_shape(task.init, jax.random.key(0), batch)


def text_ratios(width=64, base=16, around=lambda task: task, **changes):
  """Of a transformer with `width` / 4 channels a head; `changes` are of both."""
  made = []
  for wide in (width, base):
    task = around(tiny.language_model(width=wide, num_heads=wide // 4, **changes))
    made.append(boxed(task, tiny.text_batch()))
  return mup.ratios(*made), tree.flatten(sharding.unbox(made[0]))


@pytest.mark.parametrize("scan", [False, True])
def test_rates_of_a_transformer_are_those_of_table_8(scan):
  found, params = text_ratios(
    scan_layers=scan, norm=norms.RMSNorm, mlp=mlp.GatedMLP, tied_head=False
  )
  slow = r"(query|key|value|out|gate|up|down|head)/kernel$"
  wanted = {path: 1 / M for path in params if re.search(slow, path)}
  assert found == wanted
  assert {"embed/table", "position/table", "final_norm/scale"} <= params.keys()
  assert any(path.endswith("attention/out/bias") for path in params)


def test_a_width_that_is_the_bases_has_no_rates():
  assert text_ratios(width=16)[0] == {}


def test_few_key_heads_change_no_inputs():
  """Keys of one head read as many inputs as those of all."""
  found, _ = text_ratios(num_kv_heads=1, position=None, rotary=embed.Rotary())
  assert found["block_0/attention/key/kernel"] == 1 / M


def test_adapters_read_their_own_inputs():
  config = lora.LoRA(rank=2, pattern="query/kernel$")
  found, _ = text_ratios(around=lambda task: lora.Adapted(task, config))
  assert found == {f"block_{i}/attention/query/kernel/a": 1 / M for i in range(2)}


def unet_ratios(**changes):
  made = []
  for width in (32, 8):
    config = dict(num_heads=2, num_groups=4, base_width=8 if width == 32 else None)
    config |= changes
    network = unet.UNet(unet.Config(1, width, (1, 2), 1, (0,), **config))
    task = tiny.diffusion_task(network=network)
    made.append(boxed(task, tiny.image_batch()))
  return mup.ratios(*made), tree.flatten(sharding.unbox(made[0]))


def test_rates_of_a_unet_follow_the_inputs_that_grow():
  """The image, the clock and the text, whose width stays, are read as by the base."""
  found, params = unet_ratios()
  assert set(found.values()) == {1 / M}
  kernels = {path for path in params if path.endswith("kernel")}
  same = {"unet/conv_in/kernel", "unet/time_in/kernel"}
  same |= {p for p in kernels if re.search("cross_attention/(key|value)/", p)}
  same |= {p for p in kernels if p.startswith("text_encoder")}
  assert kernels - found.keys() == same
  assert params["unet/time_in/kernel"].shape == (8, 128)


def test_rates_of_a_dit():
  made = []
  for width in (32, 8):
    base = 8 if width == 32 else None
    config = dit.Config(1, 8, 2, width, 1, num_heads=width // 4, base_width=base)
    args = jnp.zeros((2, 8, 8, 1)), jnp.zeros(2)
    made.append(jax.eval_shape(dit.DiT(config).init, jax.random.key(0), *args))
  found = mup.ratios(*made)
  kernels = {p for p in tree.flatten(sharding.unbox(made[0])) if p.endswith("kernel")}
  assert kernels - found.keys() == {"params/patch_in/kernel", "params/time_in/kernel"}
  assert set(found.values()) == {1 / M}


@pytest.fixture(scope="module")
def params():
  """Of a narrow text encoder; no leaf is zero."""
  model = text_encoder.TextEncoder(text_encoder.Config(16, 4, 1, 8, 2))
  return tiny.weights(model.init, jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool))


def updates(optimizer, params, gradient):
  found, state = optimizer.update(gradient, optimizer.init(params), params)
  return tree.flatten(found), state


RATES = {
  "params/block_0/mlp/up/kernel": 0.25,
  "params/block_0/attention/query/kernel": 0.3,
}


@pytest.mark.parametrize("make", [optim.adamw, optim.lion, optim.muon])
def test_decay_does_not_know_the_rates(make, params):
  """With zero gradients the update is -rate * decay * parameter at any width."""
  zeros = jax.tree.map(jnp.zeros_like, params)
  plain = make(RATE, weight_decay=0.5)
  found, state = updates(mup.scaled(plain, RATES), params, zeros)
  wanted, before = updates(plain, params, zeros)
  for path, x in wanted.items():
    np.testing.assert_allclose(found[path], x, rtol=1e-5, atol=1e-9)
  assert jax.tree.structure(state) == jax.tree.structure(before)


@pytest.mark.parametrize("make", [optim.adamw, optim.lion, optim.muon, optim.adafactor])
def test_a_rate_multiplies_what_the_gradient_asks_for(make, params):
  draw = np.random.default_rng(0)
  gradient = jax.tree.map(lambda x: draw.normal(size=x.shape).astype("f"), params)
  plain = make(RATE, **({} if make is optim.adafactor else {"weight_decay": 0.0}))
  found, _ = updates(mup.scaled(plain, RATES), params, gradient)
  for path, x in updates(plain, params, gradient)[0].items():
    np.testing.assert_allclose(found[path], RATES.get(path, 1.0) * x, rtol=1e-5)


def test_plain_gradients_have_no_rule():
  with pytest.raises(InputError, match=r"optimizer=sgd.*adamw"):
    mup.rates("sgd", {"kernel": 0.25})
  assert mup.rates("adamw", RATES) == RATES


def test_without_rates_an_update_is_the_same_bits(params):
  gradient = jax.tree.map(jnp.ones_like, params)
  plain = optax.adamw(0.01)
  found, _ = updates(mup.scaled(plain, {}), params, gradient)
  for path, x in updates(plain, params, gradient)[0].items():
    np.testing.assert_array_equal(found[path], x)


def test_a_wide_model_is_called_by_what_it_is():
  config = dict(vocab_size=32, max_length=24, num_layers=1, width=64)
  with pytest.raises(InputError, match="base_width=128 must be at most width=64"):
    transformer.Config(**config, num_heads=4, base_width=128)
  with pytest.raises(InputError, match="num_heads=3 times 16 / 64"):
    transformer.Config(**config, num_heads=3, head_dim=4, base_width=16)
  with pytest.raises(InputError, match=r"base_num_heads=2 .* both or neither"):
    transformer.Config(**config, num_heads=4, base_num_heads=2)
  with pytest.raises(InputError, match="UNet base_width=64 must be at most width=32"):
    unet.Config(1, 32, (1,), 1, (), num_heads=2, num_groups=4, base_width=64)
  with pytest.raises(InputError, match="DiT base_width=64"):
    dit.Config(1, 8, 2, 32, 1, num_heads=2, base_width=64)
