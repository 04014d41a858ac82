"""Generation: batches, lengths, pieces and buckets change no sample."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import rng, sharding
from gen_jax.data import tokenizers
from gen_jax.decoding import generate
from gen_jax.inference import text_generator
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
  return text_generator.TextGenerator(setup[0], setup[1], sampling, piece)


def test_ragged_batch_equals_one_by_one(setup):
  keys = rng.sample_keys(0, 4)
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
  (sample,) = w.samples(params, ["the fox"], rng.sample_keys(0, 1))
  assert sample.tokens.tolist() == ids[start:]


def test_a_prompt_is_opened_as_its_tokenizer_opens_it(setup):
  tokenizer = setup[1]
  ids, bos = tokenizer.encode("the fox"), tokenizer.bos
  assert writer(setup).ids("the fox") == [bos, *ids]
  bare = writer((setup[0], dataclasses.replace(tokenizer, opening=())))
  assert bare.ids("the fox") == ids
  assert bare.ids("") == [bos]  # something must be there to continue
  assert bare.ids([5, 6]) == [5, 6]


@pytest.mark.parametrize("piece", [1, 3, 10])
def test_cutting_into_pieces_changes_nothing(setup, piece):
  keys = rng.sample_keys(3, 2)
  expected = writer(setup, piece=5).texts(setup[2], PROMPTS[:2], keys)
  assert writer(setup, piece=piece).texts(setup[2], PROMPTS[:2], keys) == expected


def test_stream_spells_the_text(setup):
  keys = rng.sample_keys(1, 1)
  w = writer(setup)
  streamed = "".join(w.stream(setup[2], PROMPTS[2], keys[0]))
  text = w.texts(setup[2], [PROMPTS[2]], keys)[0]
  assert text.startswith(streamed)  # bytes of an unfinished character may be missing
  assert streamed.rstrip("\ufffd") == text.rstrip("\ufffd")


def test_new_prompt_lengths_in_a_bucket_do_not_recompile(setup):
  w = writer(setup)
  for prompt in ("a", "ab", "the fox"):
    w.texts(setup[2], [prompt], rng.sample_keys(0, 1))
  assert w._start._cache_size() == 1
  assert w._extend._cache_size() == 1


def decoder(model, params):
  apply = jax.jit(model.apply)
  return lambda tokens, cache, at: apply({"params": params}, tokens, cache, at=at)


def test_a_row_that_is_done_stays_done(setup):
  model, _, params = setup
  cache = transformer.init_cache(model.config, 2, 16)
  decode = decoder(model, params)
  prompts, lengths = jnp.array([[1, 2], [3, 4]]), jnp.array([2, 2])
  state = generate.prefill(decode, cache, prompts, lengths, rng.sample_keys(0, 2))

  def force(x, seen, keys):  # row 0 ends
    return x.at[0, 9].add(1e9).argmax(-1)

  state, tokens, *_ = generate.extend(decode, state, 5, force, (7, 9))
  assert tokens[0].tolist() == [9, 7, 7, 7, 7]
  assert state.done.tolist()[0] is True


def test_seen_is_the_prompt_without_its_padding_and_what_was_drawn(setup):
  model, _, params = setup
  cache = transformer.init_cache(model.config, 2, 16)
  decode = decoder(model, params)
  prompts, lengths = jnp.array([[1, 2, 3], [4, 5, 6]]), jnp.array([2, 3])
  state = generate.prefill(decode, cache, prompts, lengths, rng.sample_keys(0, 2))
  assert np.flatnonzero(state.seen[0]).tolist() == [1, 2]
  state, tokens, *_ = generate.extend(decode, state, 2, generate.Sampling().draw, ())
  want = {4, 5, 6, *np.asarray(tokens[1]).tolist()}
  assert set(np.flatnonzero(state.seen[1]).tolist()) == want


def test_logprobs_are_those_of_the_full_forward(setup):
  """Of the model's own distribution, though the drawing was filtered."""
  model, tokenizer, params = setup
  w = writer(setup, temperature=0.5, top_k=3)
  (sample,) = w.samples(params, ["the fox"], rng.sample_keys(0, 1))
  ids = [tokenizer.eos, *tokenizer.encode("the fox")]
  read = np.array([[*ids, *sample.tokens]])
  logits, _ = jax.jit(model.apply)({"params": params}, read)
  scores = jax.nn.log_softmax(logits[0, len(ids) - 1 : -1], -1)
  want = np.take_along_axis(np.asarray(scores), sample.tokens[:, None], 1)[:, 0]
  np.testing.assert_allclose(sample.logprobs, want, atol=1e-4)


@pytest.mark.parametrize("piece", [1, 4])
def test_stop_texts_end_a_continuation_and_are_left_out(setup, piece):
  """Whatever tokens and pieces they fall into; a stream never shows part of one."""
  keys = rng.sample_keys(5, 1)
  free = writer(setup, piece=piece, max_tokens=30).texts(setup[2], ["the"], keys)[0]
  for start, stop in ((3, 4), (4, 7), (6, 12)):
    text = free[start:stop]
    w = writer(setup, piece=piece, max_tokens=30, stop=("nowhere to be found", text))
    kept = free[: free.index(text)]
    assert w.texts(setup[2], ["the"], keys) == [kept]
    assert "".join(w.stream(setup[2], "the", keys[0])) == kept


def test_samples_are_those_drawn_singly(setup):
  w = writer(setup)
  together = w.texts(setup[2], ["the"] * 5, rng.sample_keys(3, 5))
  for i, text in enumerate(together):
    assert w.texts(setup[2], ["the"], rng.sample_keys(3, 1, offset=i)) == [text]
  assert len(set(together)) > 1


def test_a_row_near_the_end_of_the_context_shortens_no_other(setup):
  w = writer(setup, max_tokens=30)
  prompts = ["the", "the quick " * 4]
  short, long = w.samples(setup[2], prompts, rng.sample_keys(0, 2))
  (alone,) = w.samples(setup[2], prompts[:1], rng.sample_keys(0, 1))
  assert short.tokens.tolist() == alone.tokens.tolist()
  assert len(long.tokens) < 30


def test_stacked_layers_write_the_same(setup):
  model, tokenizer, params = setup
  config = dataclasses.replace(model.config, scan_layers=True)
  stacked = (transformer.Transformer(config), tokenizer, transformer.stack(params))
  keys = rng.sample_keys(0, 1)
  want = writer(setup).texts(params, ["the"], keys)
  assert writer(stacked).texts(stacked[2], ["the"], keys) == want
