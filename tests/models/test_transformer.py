"""The transformer: counts of published models, causality, cache, positions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import sharding
from gen_jax.cost import flops
from gen_jax.models import transformer
from gen_jax.nn import attention, embed, kernels, mlp, norms
from gen_jax.types import InputError
from tests import tiny

LLAMA = dict(
  norm=norms.RMSNorm,
  mlp=mlp.GatedMLP,
  position=None,
  rotary=embed.Rotary(),
  use_bias=False,
  tied_head=False,
)


def soft_cap(query, keyvalue, mask, *, cap=0.7):
  """Scores held within (-cap, cap). Gemma Team 2024 (arXiv:2408.00118)."""
  return biased(query, keyvalue, mask, lambda s, _: cap * jnp.tanh(s / cap))


def alibi(query, keyvalue, mask):
  """Scores fall with the distance. Press et al. 2021 (arXiv:2108.12409)."""
  return biased(query, keyvalue, mask, lambda s, distances: s - 0.4 * distances)


def alibi_of_slots(query, keyvalue, mask):
  """Slots taken for positions: in a ring they are not, before it only shifted."""
  slots = jnp.arange(query.shape[1])[:, None] - jnp.arange(keyvalue.key.shape[2])[None]
  return biased(query, keyvalue, mask, lambda s, _: s - 0.4 * slots[None, None])


def triangle_alone(query, keyvalue, mask):
  """What a mask allows is not heeded, a triangle put in its place."""
  slots = jnp.arange(query.shape[1])[:, None] >= jnp.arange(keyvalue.key.shape[2])[None]
  return attention.attend(query, keyvalue, attention.Mask(slots[None, None]))


def biased(query, keyvalue, mask, change):
  rows, columns = jnp.arange(query.shape[1]), jnp.arange(keyvalue.key.shape[2])
  key, value = (
    jnp.repeat(x, query.shape[2] // x.shape[1], axis=1) for x in keyvalue
  )  # [B, N, S, Dh]
  scores = jnp.einsum("btnd,bnsd->bnts", query, key) * query.shape[-1] ** -0.5
  scores = change(scores, mask.distances(rows, columns))
  scores = jnp.where(mask.materialize(rows, columns), scores, -1e30)
  return jnp.einsum("bnts,bnsd->btnd", jax.nn.softmax(scores), value)


VARIANTS = {
  "gpt2": {},
  "sinusoidal": dict(position=embed.SinusoidalPositions, tied_head=False),
  "llama": LLAMA,
  "grouped": {**LLAMA, "num_kv_heads": 2},
  "wide heads, window": {**LLAMA, "head_dim": 6, "window": 9},
}
SHORT = {"short window": {**LLAMA, "num_kv_heads": 2, "window": 3}}
OTHERS = {
  f"{fn.__name__}{' window' if window else ''}": {
    **LLAMA, "num_kv_heads": 2, "window": window, "attention_impl": fn
  }
  for fn in (kernels.chunked, kernels.ring, soft_cap, alibi)
  for window in (None, 3)
}  # fmt: skip


def make(**changes):
  config = dict(vocab_size=32, max_length=24, num_layers=2, width=16, num_heads=4)
  model = transformer.Transformer(transformer.Config(**{**config, **changes}))
  tokens = np.random.default_rng(0).integers(0, 32, (3, 10))
  return model, tiny.weights(model.init, tokens)["params"], jnp.asarray(tokens)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_gradient_flows_from_the_future(variant):
  """d logits[t] / d embedding of token s is exactly 0 for s > t, and not for s <= t."""
  model, params, tokens = make(**VARIANTS[variant])
  tokens = jnp.arange(10)[None]  # each token occurs once: its table row is its input

  def logit(params, t):
    logits = model.apply({"params": params}, tokens)[0]
    # Through a fixed direction that the tied head cannot reach.
    return jnp.sum(logits[0, t, 20:] ** 2)

  gradient = jax.jit(jax.grad(logit))
  for t in (0, 4, 8):
    grad = gradient(params, t)["embed"]["table"][:10]
    size = np.abs(np.asarray(grad)).max(axis=1)
    assert (size[t + 1 :] == 0).all()
    assert (size[: t + 1] > 0).all()


@pytest.mark.parametrize("variant", VARIANTS | SHORT | OTHERS)
def test_cached_decode_equals_full_forward(variant):
  """Token by token after a ragged prefill, row by row at its own length."""
  model, params, tokens = make(**(VARIANTS | SHORT | OTHERS)[variant])
  apply = jax.jit(model.apply)
  full, _ = apply({"params": params}, tokens)
  lengths = np.array([2, 5, 3])
  empty = transformer.init_cache(model.config, 3, 16)
  slots = min(16, model.config.window or 16)
  assert {kv.key.shape[2] for kv in empty.layers} == {slots}
  logits, _ = apply({"params": params}, tokens[:, :5], empty)
  for row, n in enumerate(lengths):
    np.testing.assert_allclose(logits[row, :n], full[row, :n], atol=2e-5)
  logits, cache = apply({"params": params}, tokens[:, :5], empty, at=lengths - 1)
  last = full[np.arange(3), lengths - 1]
  np.testing.assert_allclose(logits[:, 0], last, atol=2e-5)
  cache = transformer.Cache(cache.layers, jnp.asarray(lengths))
  for i in range(4):
    next_tokens = tokens[np.arange(3), lengths + i][:, None]
    logits, cache = apply({"params": params}, next_tokens, cache)
    expected = full[np.arange(3), lengths + i]
    np.testing.assert_allclose(logits[:, 0], expected, atol=2e-5)


def test_kernels_are_exact_and_what_nobody_declared_is_not():
  for fn in (attention.attend, *kernels.ALL):
    assert attention.is_exact(functools.partial(functools.partial(fn), x=1))
  assert not attention.is_exact(functools.partial(soft_cap, cap=5.0))


@pytest.mark.parametrize(
  "attend, window", [(alibi_of_slots, 3), (triangle_alone, None), (triangle_alone, 3)]
)
def test_an_attention_that_a_cache_changes_is_refused(attend, window):
  """Before anything is drawn, and by its name; also while a program is traced."""
  model, _, _ = make(**LLAMA, attention_impl=attend, window=window)
  for run in (lambda f: f(), jax.eval_shape):
    with pytest.raises(InputError, match=attend.__name__):
      run(lambda: transformer.init_cache(model.config, 2, 16))


@pytest.mark.parametrize(
  "changes",
  [
    dict(rotary=embed.Rotary(), head_dim=5),
    dict(position=embed.SinusoidalPositions, width=15, num_heads=3),
  ],
)
def test_odd_sizes_that_have_no_pairs_are_refused(changes):
  with pytest.raises(InputError, match="must be even"):
    make(**changes)


def test_rotary_scores_depend_on_distance_alone():
  x = jax.random.normal(jax.random.key(0), (2, 1, 1, 8))
  rotate = embed.Rotary()

  def score(q_at, k_at):
    q = rotate(x[:1], jnp.array([[q_at]]))
    k = rotate(x[1:], jnp.array([[k_at]]))
    return jnp.sum(q * k)

  np.testing.assert_allclose(score(7, 3), score(14, 10), rtol=1e-5)
  assert abs(score(7, 3) - score(7, 4)) > 1e-3


def test_sinusoids_match_the_closed_form():
  got = embed.sinusoids(jnp.array([3]), embed.frequencies(8, 100.0))[0]
  angles = 3.0 * 100.0 ** (-np.arange(4) / 4)
  np.testing.assert_allclose(got, [*np.cos(angles), *np.sin(angles)], rtol=1e-5)


def test_dropout_changes_training_alone():
  model, params, tokens = make(dropout=0.5)

  def run(seed, train):
    rngs = {"dropout": jax.random.key(seed)} if train else None
    apply = jax.jit(model.apply, static_argnames="train")
    return apply({"params": params}, tokens, train=train, rngs=rngs)[0]

  assert not np.allclose(run(0, True), run(1, True))
  np.testing.assert_array_equal(run(0, False), run(1, False))


def grads(model, params, tokens, **inputs):
  """Gradient of the mean square of the logits."""

  def loss(params):
    return jnp.mean(model.apply({"params": params}, tokens, **inputs)[0] ** 2)

  return jax.jit(jax.grad(loss))(params)


def assert_close(got, want, **tolerance):
  jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, **tolerance), got, want)


@pytest.mark.parametrize("remat", [None, jax.checkpoint_policies.nothing_saveable])
@pytest.mark.parametrize("variant", ["gpt2", "grouped"])
def test_scan_and_remat_change_nothing(variant, remat):
  model, params, tokens = make(**VARIANTS[variant], num_layers=3)
  config = dataclasses.replace(model.config, scan_layers=True, remat=remat)
  scanned = transformer.Transformer(config)
  shapes = jax.eval_shape(scanned.init, jax.random.key(0), tokens)["params"]
  stacked = transformer.stack(params)
  assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(
    jnp.shape, sharding.unbox(shapes)
  )
  got = grads(scanned, stacked, tokens)
  assert_close(transformer.unstack(got), grads(model, params, tokens), atol=1e-6)


def test_remat_computes_the_forward_pass_again():
  """What `full` does not keep the backward pass pays for; `dots` keeps products."""
  model, params, tokens = make(num_layers=3)
  policies = jax.checkpoint_policies
  cost = []
  for remat in (None, policies.dots_with_no_batch_dims_saveable, "full"):
    remat = policies.nothing_saveable if remat == "full" else remat
    config = dataclasses.replace(model.config, remat=remat)
    rebuilt = transformer.Transformer(config)
    cost.append(flops.count(lambda p, m=rebuilt: grads(m, p, tokens), params))
  none, dots, full = cost
  assert none < dots < full


def test_scanned_layers_start_apart_and_drop_apart():
  """Each layer has its own initial weights and its own dropout mask."""
  model, _, tokens = make(num_layers=2, dropout=0.5, scan_layers=True, tied_head=False)
  params = sharding.unbox(jax.jit(model.init)(jax.random.key(0), tokens))["params"]
  kernel = params["blocks"]["attention"]["query"]["kernel"]
  assert not np.allclose(kernel[0], kernel[1])
  # Each layer adds 1, dropped or doubled; the head shows the normalised sum.
  params = jax.tree.map(jnp.zeros_like, params)
  params["blocks"]["mlp"]["down"]["bias"] += 1.0
  params["final_norm"]["scale"] += 1.0
  params["head"]["kernel"] += jnp.eye(16, 32)
  rngs = {"dropout": jax.random.key(1)}
  apply = jax.jit(functools.partial(model.apply, train=True))
  logits, _ = apply({"params": params}, tokens, rngs=rngs)
  values = [len(np.unique(row[:16].round(4))) for row in np.asarray(logits[0])]
  assert max(values) == 3  # 0, 2 and 4; one mask for both layers would give 0 and 4


@pytest.mark.parametrize("variant", ["gpt2", "sinusoidal", "grouped"])
def test_packed_equals_separate(variant):
  """Documents of a packed row see and hear nothing of each other."""
  model, params, tokens = make(**VARIANTS[variant])
  lengths = [4, 1, 5]
  segments = np.repeat([1, 2, 3], lengths)[None]
  positions = np.concatenate([np.arange(n) for n in lengths])[None]
  apply = jax.jit(model.apply)
  packed, _ = apply(
    {"params": params}, tokens[:1], positions=positions, segments=segments
  )
  start = 0
  for n in lengths:
    alone, _ = apply({"params": params}, tokens[:1, start : start + n])
    np.testing.assert_allclose(packed[:, start : start + n], alone, atol=2e-5)
    start += n


def test_window_sees_exactly_its_tokens():
  """One layer: logits hear the last 4 tokens and no other."""
  model, params, _ = make(**{**LLAMA, "window": 4, "num_layers": 1})
  tokens = jnp.arange(10)[None]

  def logit(params):
    logits = model.apply({"params": params}, tokens)[0]
    return jnp.sum(logits[0, 8] ** 2)

  grad = np.abs(jax.jit(jax.grad(logit))(params)["embed"]["table"][:10]).max(axis=1)
  assert ((grad > 0) == np.isin(np.arange(10), [5, 6, 7, 8])).all()


def test_llama3_scaling_keeps_high_and_divides_low_frequencies():
  scaling = embed.Llama3Scaling(8.0, 1.0, 4.0, 8192)
  turns = np.array([0.5, 1.0, 2.5, 4.0, 100.0])  # within the original context
  rates = jnp.asarray(turns * 2 * np.pi / 8192, jnp.float32)
  kept = np.asarray(scaling(rates) / rates)
  np.testing.assert_allclose(kept, [1 / 8, 1 / 8, 0.5 + 0.5 / 8, 1, 1], rtol=1e-5)


def test_bf16_computes_in_bf16_over_float32_parameters():
  model, params, tokens = make(dtype="bfloat16")
  whole = transformer.Transformer(dataclasses.replace(model.config, dtype="float32"))
  exact, logits = (
    jax.jit(m.apply)({"params": params}, tokens)[0] for m in (whole, model)
  )
  assert logits.dtype == jnp.float32
  error = np.abs(logits - exact).max() / np.abs(exact).max()
  assert 1e-5 < error < 3e-2
  assert all(
    g.dtype == jnp.float32 for g in jax.tree.leaves(grads(model, params, tokens))
  )
