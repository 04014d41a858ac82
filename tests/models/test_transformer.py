"""The transformer: counts of published models, causality, cache, positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import sharding, tree
from gen_jax.models import transformer
from gen_jax.nn import embed, mlp, norms

LLAMA = dict(
  norm=norms.RMSNorm,
  mlp=mlp.GatedMLP,
  position=None,
  rotary=embed.Rotary(),
  use_bias=False,
  tied_head=False,
)
VARIANTS = {
  "gpt2": {},
  "sinusoidal": dict(position=embed.SinusoidalPositions, tied_head=False),
  "llama": LLAMA,
  "grouped": {**LLAMA, "num_kv_heads": 2},
}


def make(**changes):
  config = dict(vocab_size=32, max_length=24, num_layers=2, width=16, num_heads=4)
  model = transformer.Transformer(transformer.Config(**{**config, **changes}))
  tokens = np.random.default_rng(0).integers(0, 32, (3, 10))
  init = jax.jit(lambda key: sharding.unbox(model.init(key, tokens))["params"])
  params = init(jax.random.key(0))
  # Away from the initial zeros and ones, so that every term matters.
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  leaves = [
    x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
  ]
  return model, jax.tree.unflatten(treedef, leaves), jnp.asarray(tokens)


@pytest.mark.parametrize(
  "fields, count",
  [
    (
      dict(vocab_size=50257, max_length=1024, num_layers=12, width=768, num_heads=12),
      124_439_808,
    ),
    (
      dict(vocab_size=50257, max_length=1024, num_layers=48, width=1600, num_heads=25),
      1_557_611_200,
    ),
    (
      dict(
        vocab_size=32000,
        max_length=2048,
        num_layers=32,
        width=4096,
        num_heads=32,
        mlp_width=11008,
        **LLAMA,
      ),
      6_738_415_616,
    ),
    (
      dict(
        vocab_size=32000,
        max_length=4096,
        num_layers=80,
        width=8192,
        num_heads=64,
        num_kv_heads=8,
        mlp_width=28672,
        **LLAMA,
      ),
      68_976_648_192,
    ),
  ],
  ids=["GPT-2 124M", "GPT-2 XL", "LLaMA 7B", "LLaMA-2 70B"],
)
def test_parameter_count_is_the_published_one(fields, count):
  model = transformer.Transformer(transformer.Config(**fields))
  tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  params = jax.eval_shape(model.init, jax.random.key(0), tokens)
  assert tree.size(sharding.unbox(params)) == count


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


@pytest.mark.parametrize("variant", VARIANTS)
def test_cached_decode_equals_full_forward(variant):
  """Token by token after a ragged prefill, row by row at its own length."""
  model, params, tokens = make(**VARIANTS[variant])
  apply = jax.jit(model.apply)
  full, _ = apply({"params": params}, tokens)
  lengths = np.array([2, 5, 3])
  cache = transformer.init_cache(model.config, 3, 16)
  logits, cache = apply({"params": params}, tokens[:, :5], cache)
  for row, n in enumerate(lengths):
    np.testing.assert_allclose(logits[row, :n], full[row, :n], atol=2e-5)
  cache = transformer.Cache(cache.layers, jnp.asarray(lengths))
  for i in range(4):
    next_tokens = tokens[np.arange(3), lengths + i][:, None]
    logits, cache = apply({"params": params}, next_tokens, cache)
    expected = full[np.arange(3), lengths + i]
    np.testing.assert_allclose(logits[:, 0], expected, atol=2e-5)


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
  got = embed.sinusoids(jnp.array([3]), 8, 100.0)[0]
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
