"""Scoring: every token once, and closed forms of what is summed."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers as backends

from gen_jax import sharding
from gen_jax.data import tokenizer_json, tokenizers
from gen_jax.evaluation import scoring
from gen_jax.models import transformer
from gen_jax.system import folders
from gen_jax.types import InputError

CONTEXT = 8


@pytest.fixture(scope="module")
def model():
  return transformer.Transformer(
    transformer.Config(
      vocab_size=260, max_length=CONTEXT, num_layers=1, width=8, num_heads=2
    )
  )


@pytest.fixture(scope="module")
def params(model):
  init = model.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
  return jax.tree.map(lambda x: 4.0 * x + 0.1, sharding.unbox(init))


@pytest.mark.parametrize("length", [2, 7, 8, 9, 10, 23])
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_windows_score_each_token_once_with_enough_before_it(length, stride):
  scored = []
  for row in scoring.windows(range(length), CONTEXT, stride):
    assert len(row.tokens) <= CONTEXT + 1
    for at in range(row.first, len(row.tokens)):
      token = int(row.tokens[at])
      assert at >= min(token, CONTEXT - stride)
      scored.append(token)
  assert scored == list(range(1, length))


def test_a_model_that_knows_nothing(model, params):
  """Perplexity V, and log2 V bits for each of the bytes."""
  zeros = jax.tree.map(jnp.zeros_like, params)
  score = scoring.score_texts(
    scoring.Scorer(model), zeros, tokenizers.plain_bytes(), ["some text", "é"], 4
  )
  assert (score.num_tokens, score.num_bytes) == (11, 11)
  assert score.perplexity == pytest.approx(260, rel=1e-5)
  assert score.bits_per_byte == pytest.approx(math.log2(260), rel=1e-5)


def test_nothing_is_scored_after_a_token_that_the_tokenizer_does_not_put(model, params):
  """GPT-2's own tokenizer names a bos and puts none: the first token has no score."""
  zeros, texts = jax.tree.map(jnp.zeros_like, params), ["some text", "ab"]
  bare = dataclasses.replace(tokenizers.plain_bytes(), opening=())
  score = scoring.score_texts(scoring.Scorer(model), zeros, bare, texts, 4)
  assert (score.num_tokens, score.num_bytes) == (9, 9)
  rows, _ = scoring.choice_rows(
    scoring.Question("ab", ("c", "de"), 0, "f:1"), bare, CONTEXT
  )
  assert [row.tokens.tolist() for row in rows] == [list(b"abc"), list(b"abde")]
  rows, _ = scoring.choice_rows(  # but something must stand before an answer to nothing
    scoring.Question("", ("c", "de"), 0, "f:1"), bare, CONTEXT
  )
  assert [row.tokens.tolist() for row in rows] == [[256, *b"c"], [256, *b"de"]]


def test_bytes_are_those_of_what_is_encoded(model, params):
  backend = backends.Tokenizer.from_str(
    tokenizers.plain_bytes().encoding.source.decode()
  )
  backend.normalizer = backends.normalizers.NFC()
  made = tokenizers.Tokenizer(tokenizer_json.read(backend.to_str().encode()))
  made = dataclasses.replace(made, opening=(256,))
  zeros = jax.tree.map(jnp.zeros_like, params)
  score = scoring.score_texts(scoring.Scorer(model), zeros, made, ["e\u0301x"], 4)
  assert (score.num_tokens, score.num_bytes) == (3, 3)  # as U+00E9, not as it was


@pytest.mark.parametrize("batch_tokens", [1, 64])
def test_log_likelihoods_are_those_of_the_model_row_by_row(model, params, batch_tokens):
  tokens = np.random.default_rng(0).integers(0, 260, 30)
  rows = scoring.windows(tokens, CONTEXT, 3)
  got = scoring.Scorer(model, batch_tokens).log_likelihoods(params, rows)
  for row, scores in zip(rows, got, strict=True):
    logits, _ = model.apply({"params": params}, row.tokens[None, :-1])
    logs = np.asarray(jax.nn.log_softmax(logits[0], -1))
    want = [logs[i - 1, row.tokens[i]] for i in range(row.first, len(row.tokens))]
    np.testing.assert_allclose(scores, want, atol=2e-5)


def test_batches_that_were_scored_are_not_scored_again(model, params, tmp_path):
  """An interrupted command leaves its batches; an equal one computes the others."""
  tokens = np.random.default_rng(0).integers(0, 260, 60)
  rows = scoring.windows(tokens, CONTEXT, 3)
  scorer = scoring.Scorer(model, 16)
  whole = scorer.log_likelihoods(params, rows)
  keep, plain, calls = functools.partial(folders.kept, tmp_path), scorer._score, []

  def score(*args):
    calls.append(1)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return plain(*args)

  scorer._score = score
  with pytest.raises(KeyboardInterrupt):
    scorer.log_likelihoods(params, rows, keep)
  again = scorer.log_likelihoods(params, rows, keep)
  np.testing.assert_array_equal(np.concatenate(again), np.concatenate(whole))
  calls.clear()
  scorer.log_likelihoods(params, rows, keep)
  assert not calls


def test_choices_by_a_model_that_likes_short_ones(model, params):
  """All bytes are as likely: raw favours the shortest, per byte all are equal."""
  zeros = jax.tree.map(jnp.zeros_like, params)
  rows = [("c", ["a", "bb"], 0), ("c", ["aa", "b"], 0), ("c", ["aaa", "bb", "c"], 2)]
  text = "\n".join(
    f'{{"context": "{c}", "choices": {str(o).replace(chr(39), chr(34))}, "label": {i}}}'
    for c, o, i in rows
  )
  questions = scoring.read_questions(text, "f")
  got = scoring.score_questions(
    scoring.Scorer(model), zeros, tokenizers.plain_bytes(), questions
  )
  assert got["accuracy"] == pytest.approx(2 / 3)
  assert got["accuracy_stderr"] == pytest.approx(math.sqrt(2 / 9 / 2))
  assert got["num_questions"] == 3 and got["num_truncated"] == 0


def test_a_long_context_loses_its_beginning_and_no_choice(model):
  question = scoring.Question("0123456789", ("ab", "c"), 0, "f:1")
  rows, cut = scoring.choice_rows(question, tokenizers.plain_bytes(), CONTEXT)
  assert cut == 2
  first = [bytes(r.tokens[r.first :].tolist()) for r in rows]
  encoded = [tokenizers.plain_bytes().encode(c) for c in question.choices]
  assert first == [bytes(ids) for ids in encoded]


@pytest.mark.parametrize(
  "line, says",
  [
    ("{", "not JSON"),
    ("[]", "is empty"),
    ("[1]", "not a JSON object"),
    ('{"context": "a"}', "lacks choices, label"),
    ('{"context": "a", "choices": ["b"], "label": 0}', "at least two"),
    ('{"context": "a", "choices": ["b", "c"], "label": 2}', "label 2"),
    ('{"context": "a", "choices": ["b", ""], "label": 0}', "not empty"),
    ("", "is empty"),
  ],
)
def test_bad_questions(line, says):
  with pytest.raises(InputError, match=says):
    scoring.read_questions(line, "f.jsonl")


@pytest.mark.parametrize("stride", [0, CONTEXT + 1])
def test_a_stride_that_cannot_be(stride):
  with pytest.raises(InputError, match=f"stride={stride}"):
    scoring.windows([], CONTEXT, stride)
