"""Whoever else is in the batch, and whenever a prompt comes: the same continuation."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import rng, sharding
from gen_jax.data import tokenizers
from gen_jax.decoding import generate
from gen_jax.inference import slots, text_generator
from gen_jax.models import transformer

TOKENIZER = tokenizers.train_bpe(["the quick brown fox jumps over it"], 280)
PROMPTS = (
  "a",
  "the quick brown fox " * 3,
  "it",
  "",
  "fox jumps",
  "over " * 7,
  "b",
  "c",
)
# temperature, top_p
HOW = ((0.0, 1.0), (1.0, 1.0), (0.7, 0.5), (2.0, 0.9), (0.0, 0.3), (1.0, 0.99))


@pytest.fixture(scope="module", params=[None, 12], ids=["full", "window"])
def given(request):
  """A model and its weights."""
  config = transformer.Config(
    vocab_size=TOKENIZER.vocab_size,
    max_length=64,
    num_layers=2,
    width=16,
    num_heads=2,
    window=request.param,
  )
  model = transformer.Transformer(config)
  init = jax.jit(lambda key: sharding.unbox(model.init(key, jnp.zeros((1, 2), int))))
  return model, jax.tree.map(lambda x: 3.0 * x, init(jax.random.key(0))["params"])


def writer(given, **sampling):
  how = generate.Sampling(**{"max_tokens": 20, **sampling})
  return text_generator.TextGenerator(given[0], TOKENIZER, how, 4)


def jobs_of(batch):
  """One of each prompt, each drawn in another way."""
  found = []
  for i, (prompt, (heat, top_p)) in enumerate(
    zip(PROMPTS, itertools.cycle(HOW), strict=False)
  ):
    job = batch.job(batch.writer.ids(prompt), rng.sample_keys(i, 1)[0])
    stop = ("e",) if i % 3 == 2 else ()
    changes = dict(temperature=heat, top_p=top_p, max_tokens=5 + 7 * (i % 4), stop=stop)
    found.append(dataclasses.replace(job, **changes))
  return found


def drawn(batch, jobs):
  """{number: (text, tokens, bytes of the log-probabilities)}."""
  return {
    n: (s.text, s.tokens.tolist(), s.logprobs.tobytes()) for n, s in batch.run(jobs)
  }


def test_alone_in_company_and_in_another_order(given):
  """To the last bit: one program of all rows draws every token."""
  batch = slots.Slots(writer(given), given[1], num=3)
  jobs = jobs_of(batch)
  alone = {i: drawn(batch, [job])[0] for i, job in enumerate(jobs)}
  assert drawn(batch, jobs) == alone
  backwards = drawn(batch, jobs[::-1])
  assert {len(jobs) - 1 - i: found for i, found in backwards.items()} == alone
  assert batch.room == 3 and len({text for text, *_ in alone.values()}) > 4


def test_a_row_is_what_the_generator_draws(given):
  """Of the config's numbers, whatever batch and piece."""
  batch = slots.Slots(writer(given), given[1], num=3, piece=5)
  for number, (text, tokens, _) in drawn(batch, jobs_of(batch)).items():
    job = jobs_of(batch)[number]
    how = dict(temperature=job.temperature, top_p=job.top_p, stop=job.stop)
    own = writer(given, max_tokens=job.max_tokens, **how)
    (sample,) = own.samples(given[1], [PROMPTS[number]], job.key[None])
    assert (sample.text, sample.tokens.tolist()) == (text, tokens)


def test_the_context_ends_a_row_and_limits_a_prompt(given):
  batch = slots.Slots(writer(given, max_tokens=60), given[1], num=2, context=30)
  job = batch.job([1] * 25, rng.sample_keys(0, 1)[0])
  ((_, sample),) = batch.run([dataclasses.replace(job, temperature=0.0)])
  assert len(sample.tokens) == 5
  with pytest.raises(ValueError, match="30 tokens in a context of 30"):
    batch.admit(dataclasses.replace(job, ids=[1] * 30))


def test_a_row_that_nobody_waits_for_makes_room(given):
  batch = slots.Slots(writer(given), given[1], num=2)
  jobs = jobs_of(batch)
  left, stays = batch.admit(jobs[1]), batch.admit(jobs[3])
  batch.advance()
  batch.drop(left)
  assert batch.room == 1
  comes = batch.admit(jobs[0])
  while not (stays.done and comes.done):
    batch.advance()
  assert not left.done
  alone = drawn(batch, [jobs[3]])[0], drawn(batch, [jobs[0]])[0]
  assert (stays.text, comes.text) == (alone[0][0], alone[1][0])


@pytest.mark.parametrize("order", [generate.FILTERS, generate.FILTERS[::-1]])
def test_numbers_by_row_are_those_of_the_fields(order):
  draw = np.random.default_rng(0)
  logits = jnp.asarray(draw.normal(0, 2, (len(HOW), 40)), jnp.float32)
  seen = jnp.asarray(draw.integers(0, 2, logits.shape), bool)
  keys = rng.sample_keys(3, len(HOW))
  how = generate.Sampling(repetition_penalty=1.3, top_k=20, min_p=0.01, order=order)
  numbers = np.float32(HOW).T
  together = how.draw_by_row(*numbers)(logits, seen, keys)
  for i, (heat, top_p) in enumerate(HOW):
    own = dataclasses.replace(how, temperature=heat, top_p=top_p)
    row = slice(i, i + 1)
    assert own.draw(logits[row], seen[row], keys[row])[0] == together[i]


@pytest.fixture(scope="module")
def full(given):
  """Log-probabilities of every next token, by the whole model, float64 [T, V]."""
  model, params = given
  apply = jax.jit(
    lambda tokens: jax.nn.log_softmax(model.apply({"params": params}, tokens)[0])
  )

  def run(tokens):
    filled = np.zeros((1, model.config.max_length), np.int32)  # one program for all
    filled[0, : len(tokens)] = tokens
    return np.asarray(apply(filled)[0, : len(tokens)], np.float64)

  return run


@pytest.mark.parametrize("presence, frequency", [(0.0, 0.0), (1.5, 0.0), (0.0, 0.7)])
def test_penalties_are_of_what_was_drawn(given, full, presence, frequency):
  """Greedy decoding by hand, of logits less the penalties, without the prompt."""
  batch = slots.Slots(writer(given, temperature=0.0), given[1], num=2)
  ids = batch.writer.ids("the quick")
  job = batch.job(ids, rng.sample_keys(0, 1)[0])
  how = {"presence_penalty": presence, "frequency_penalty": frequency}
  job = dataclasses.replace(job, max_tokens=16, **how)
  ((_, sample),) = batch.run([job])
  tokens, drawn = list(ids), np.zeros(TOKENIZER.vocab_size)
  for _ in range(16):
    logits = full(tokens)[-1] - presence * (drawn > 0) - frequency * drawn
    tokens.append(int(logits.argmax()))
    drawn[tokens[-1]] += 1
    if tokens[-1] in TOKENIZER.stops:
      break
  assert sample.tokens.tolist() == tokens[len(ids) :]
  plain = next(batch.run([dataclasses.replace(job, **dict.fromkeys(how, 0.0))]))[1]
  assert (plain.tokens.tolist() == sample.tokens.tolist()) == (presence == frequency)


def test_likeliest_tokens_and_scores_of_the_prompt(given, full):
  batch = slots.Slots(writer(given), given[1], num=2)
  ids = batch.writer.ids("the quick brown fox")
  job = batch.job(ids, rng.sample_keys(3, 1)[0])
  job = dataclasses.replace(job, max_tokens=6, num_likeliest=3, is_scored=True)
  other = dataclasses.replace(job, num_likeliest=0, is_scored=False)
  row, plain = batch.admit(job), batch.admit(other)
  while not (row.done and plain.done):
    batch.advance()
  want = full([*ids, *row.tokens])
  logprobs, likeliest = row.prompt
  found = [*zip([*ids[1:], *row.tokens], logprobs + row.logprobs, strict=True)]
  for i, (token, logprob) in enumerate(found):
    assert logprob == pytest.approx(want[i, token], abs=1e-4)
    names, near = (likeliest + row.likeliest)[i]
    assert near == pytest.approx(np.sort(want[i])[::-1][:3], abs=1e-4)
    assert want[i, names] == pytest.approx(near, abs=1e-4)
  assert len(found) == len(ids) + 5
  assert (plain.tokens, plain.likeliest, plain.prompt) == (row.tokens, [], None)


def test_a_prompt_alone_takes_no_room(given):
  batch = slots.Slots(writer(given), given[1], num=1)
  job = batch.job(batch.writer.ids("it"), rng.sample_keys(0, 1)[0])
  none = dataclasses.replace(job, max_tokens=0, is_scored=True)
  row = batch.admit(none)
  assert row.done and batch.room == 1 and len(row.prompt[0]) == len(job.ids) - 1
  found = dict(batch.run([none, job, none]))
  assert [len(found[i].tokens) > 0 for i in range(3)] == [False, True, False]
