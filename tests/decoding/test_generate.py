"""Generation: batches, lengths, pieces and buckets change no sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import prompting, sharding
from gen_jax.data import tokenizers
from gen_jax.decoding import generate
from gen_jax.models import transformer

PROMPTS = ["a", "some words", "the quick brown fox", ""]


@pytest.fixture(scope="module")
def setup():
  tokenizer = tokenizers.train_bpe(["the quick brown fox jumps"], 270)
  model = transformer.Transformer(
    transformer.Config(
      vocab_size=tokenizer.vocab_size,
      max_length=48,
      num_layers=1,
      width=16,
      num_heads=2,
    )
  )
  init = jax.jit(lambda key: sharding.unbox(model.init(key, jnp.zeros((1, 2), int))))
  params = jax.tree.map(lambda x: 3.0 * x, init(jax.random.key(0))["params"])
  return model, tokenizer, params


def writer(setup, piece=4, **sampling):
  sampling = generate.Sampling(**{"max_tokens": 10, **sampling})
  return prompting.Writer(setup[0], setup[1], sampling, piece)


def test_ragged_batch_equals_one_by_one(setup):
  keys = prompting.keys(0, 4)
  w = writer(setup)
  together = w.texts(setup[2], PROMPTS, keys)
  alone = [w.texts(setup[2], [p], keys[i : i + 1])[0] for i, p in enumerate(PROMPTS)]
  assert together == alone
  assert len(set(together)) > 1


def test_greedy_is_the_argmax_of_the_full_forward(setup):
  """No cache, no scan: re-read everything for every token."""
  model, tokenizer, params = setup
  ids = [tokenizer.eos, *tokenizer.encode("the fox")]
  start = len(ids)
  apply = jax.jit(model.apply)
  for _ in range(10):
    padded = np.zeros((1, 32), np.int32)
    padded[0, : len(ids)] = ids
    logits, _ = apply({"params": params}, padded)
    ids.append(int(logits[0, len(ids) - 1].argmax()))
  w = writer(setup, temperature=0.0)
  pieces = list(w.pieces(params, ["the fox"], prompting.keys(0, 1)))
  assert np.concatenate(pieces, 1)[0].tolist() == ids[start:]


@pytest.mark.parametrize("piece", [1, 3, 10])
def test_cutting_into_pieces_changes_nothing(setup, piece):
  keys = prompting.keys(3, 2)
  expected = writer(setup, piece=5).texts(setup[2], PROMPTS[:2], keys)
  assert writer(setup, piece=piece).texts(setup[2], PROMPTS[:2], keys) == expected


def test_stream_spells_the_text(setup):
  keys = prompting.keys(1, 1)
  w = writer(setup)
  streamed = "".join(w.stream(setup[2], PROMPTS[2], keys[0]))
  text = w.texts(setup[2], [PROMPTS[2]], keys)[0]
  assert text.startswith(streamed)  # bytes of an unfinished character may be missing
  assert streamed.rstrip("\ufffd") == text.rstrip("\ufffd")


def test_new_prompt_lengths_in_a_bucket_do_not_recompile(setup):
  w = writer(setup)
  for prompt in ("a", "ab", "the fox"):
    w.texts(setup[2], [prompt], prompting.keys(0, 1))
  assert w._start._cache_size() == 1
  assert w._extend._cache_size() == 1


def test_a_row_that_is_done_stays_done(setup):
  model, _, params = setup
  cache = transformer.init_cache(model.config, 2, 16)
  decode = lambda tokens, cache: model.apply({"params": params}, tokens, cache)  # noqa: E731
  prompts, lengths = jnp.array([[1, 2], [3, 4]]), jnp.array([2, 2])
  state = generate.prefill(decode, cache, prompts, lengths, prompting.keys(0, 2))
  eos = 7
  force = lambda x: x.at[0, eos].add(1e9)  # noqa: E731 (row 0 ends at once)
  state, tokens = generate.extend(decode, state, 5, force, eos)
  assert tokens[0].tolist() == [eos] * 5
  assert state.done.tolist()[0] is True
