"""How likely a language model finds what is written: text, and answers to choose from.

A sequence of tokens becomes rows that fit the model's context, a row says which of its
tokens it scores, and `Scorer` gives their log-likelihoods. What is known of the result
is summed in float64 on the host.
"""

import collections
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen_jax import tree
from gen_jax.data import slicing
from gen_jax.data import tokenizer as tokenizers
from gen_jax.models import transformer
from gen_jax.system import files, folders, progress
from gen_jax.types import Array, InputError, Params


class Row(NamedTuple):
  """A stretch of tokens that fits the model: all but the last are read.

  Attributes:
    tokens: int32 [2 ... context + 1].
    first: index of the first token that is scored, at least 1; all after it are, too.
  """

  tokens: np.ndarray
  first: int


def windows(tokens: Sequence[int], context: int, stride: int) -> list[Row]:
  """Rows that score every token but the first exactly once.

  Row k reads the tokens from k * stride on, `context` of them, and scores the last
  `stride` of what follows them (row 0: everything). So a token is predicted from at
  least context - stride tokens before it, or from all there are; stride = context cuts
  the text into windows that know nothing of each other.

  >>> [(row.tokens.tolist(), row.first) for row in windows(range(6), 3, 2)]
  [([0, 1, 2, 3], 1), ([2, 3, 4, 5], 2)]

  Raises:
    InputError: a stride that leaves tokens out, or does not move.
  """
  if not 1 <= stride <= context:
    raise InputError(
      f"stride={stride} must be at least 1 and at most the model's context of"
      f" {context} tokens; {max(1, context // 2)} is usual"
    )
  tokens = np.asarray(tokens, np.int32)
  if len(tokens) < 2:
    return []
  starts = range(0, max(1, len(tokens) - 1 - context + stride), stride)
  return [
    Row(tokens[start : start + context + 1], context - stride + 1 if start else 1)
    for start in starts
  ]


def likelihood(logits: Array, targets: Array) -> Array:
  """log p(target), float32 [B, T], of logits float32 [B, T, V]."""
  return -optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def likelihood_and_rank(logits: Array, targets: Array) -> Array:
  """`likelihood` and whether the target is the likeliest, 1 or 0: float32 [B, T, 2]."""
  is_first = jnp.argmax(logits, -1) == targets
  return jnp.stack([likelihood(logits, targets), is_first], -1)


class Scorer:
  """Log-likelihoods of tokens; compiled once per bucket of row lengths.

  Attributes:
    model: the transformer.
    batch_tokens: tokens that a batch holds (at least one row); changes no result.
  """

  def __init__(
    self,
    model: transformer.Transformer,
    batch_tokens: int = 4096,
    measure: Callable[[Array, Array], Array] = likelihood,
  ):
    self.model, self.batch_tokens = model, batch_tokens

    def score(params, tokens):
      logits, _ = model.apply({"params": params}, tokens[:, :-1])
      return measure(logits, tokens[:, 1:])

    self._score = jax.jit(score)

  def _width(self, length: int) -> int:
    return min(1 << max(4, (length - 1).bit_length()), self.model.config.max_length)

  def log_likelihoods(
    self, params: Params, rows: Sequence[Row], keep: folders.Keep = folders.nothing_kept
  ) -> list[np.ndarray]:
    """Natural log-likelihoods float32 [n] of each row's n scored tokens.

    Args:
      keep: stores the batches that are scored.
    """
    buckets = collections.defaultdict(list)
    for i, row in enumerate(rows):
      buckets[self._width(len(row.tokens) - 1)].append(i)
    batches = []
    for width, members in buckets.items():
      most = max(1, self.batch_tokens // width)
      size = min(most, 1 << (len(members) - 1).bit_length())
      firsts = range(0, len(members), size)
      batches += [(width, size, members[first : first + size]) for first in firsts]

    def scores(begin: int) -> Iterator[np.ndarray]:
      for width, size, chosen in progress.track(
        batches[begin:], len(batches), "batches scored", begin
      ):
        batch = np.zeros((size, width + 1), np.int32)  # what follows a row, it ignores
        for line, i in zip(batch, chosen, strict=False):
          line[: len(rows[i].tokens)] = rows[i].tokens
        yield tree.fetch(self._score(params, batch))

    results: list[Any] = [None] * len(rows)
    for (_, _, chosen), found in zip(batches, keep(scores), strict=True):
      for line, i in zip(found, chosen, strict=False):
        results[i] = line[rows[i].first - 1 : len(rows[i].tokens) - 1]
    return results


class TextScore(NamedTuple):
  """What a model makes of some texts, as sums.

  Attributes:
    nats: negative log-likelihood of all scored tokens.
    num_tokens: how many they are ...
    num_bytes: ... and the UTF-8 bytes of text that they stand for: of the text as the
      tokenizer's normaliser has it, where it has one.
  """

  nats: float
  num_tokens: int
  num_bytes: int

  @property
  def perplexity(self) -> float:
    """Of a token: comparable between models of one tokenizer alone."""
    return float(np.exp(self.nats / self.num_tokens))

  @property
  def bits_per_byte(self) -> float:
    """Comparable between tokenizers."""
    return self.nats / math.log(2.0) / self.num_bytes


def score_texts(
  scorer: Scorer,
  params: Params,
  tokenizer: tokenizers.Tokenizer,
  texts: Iterable[str],
  stride: int,
  keep: folders.Keep = folders.nothing_kept,
) -> TextScore:
  """Scores texts, each on its own, see `windows`.

  What the tokenizer puts before texts opens each, unscored; where that is nothing, the
  first token of the text is what cannot be scored, and its bytes do not count. No eos
  is asked for.

  Raises:
    InputError: see `windows`; or there is no token to score.
  """
  context = scorer.model.config.max_length
  opening = tokenizer.opening
  rows, num_bytes = [], 0
  for text in texts:
    ids = slicing.encode(text, tokenizer)
    num_bytes += len(tokenizer.decode(ids).encode())
    if len(ids) and not opening:
      unseen = tokenizer.encoding.pieces[ids[0]]
      num_bytes -= len(unseen.removeprefix(tokenizer.prefix.encode()))
    rows += windows(np.append(np.int32(opening), ids), context, stride)
  if not rows:
    raise InputError(
      f"the text has no token to score; give it at least {2 - len(opening)}"
    )
  scores = scorer.log_likelihoods(params, rows, keep)
  nats = -sum(float(np.sum(score, dtype=np.float64)) for score in scores)
  return TextScore(nats, sum(map(len, scores)), num_bytes)


def beginning(
  scorer: Scorer, params: Params, tokenizer: tokenizers.Tokenizer, text: str
) -> tuple[list[int], list[float]]:
  """The first tokens of a text that are scored, at most 300, and log p of each."""
  ids = [*tokenizer.opening, *tokenizer.encode(text[:4_000])][:301]
  rows = windows(ids, scorer.model.config.max_length, 1)[:1]
  if not rows:
    return [], []
  (scores,) = scorer.log_likelihoods(params, rows)
  return rows[0].tokens[1:].tolist(), scores.tolist()


class Question(NamedTuple):
  """A text and what may follow it, as it is written: spaces between them included.

  Attributes:
    context: may be empty where the tokenizer has a bos, which then stands for it.
    choices: at least two, none of them empty.
    label: index of the right one.
    where: 'FILE:LINE', for messages.
  """

  context: str
  choices: tuple[str, ...]
  label: int
  where: str


def _question(row: dict[str, Any], where: str) -> Question:
  missing = [name for name in Question._fields[:3] if name not in row]
  if missing:
    raise InputError(
      f"{where} lacks {', '.join(missing)}; a row is"
      ' {"context": text, "choices": [text, text, ...], "label": index}'
    )
  context, choices, label = (row[name] for name in Question._fields[:3])
  if not isinstance(context, str):
    raise InputError(f"{where}: context {context!r:.40} must be text")
  if not isinstance(choices, list) or len(choices) < 2:
    raise InputError(f"{where}: choices {choices!r:.40} must be a list of at least two")
  for choice in choices:
    if not isinstance(choice, str) or not choice:
      raise InputError(f"{where}: choice {choice!r:.40} must be text, and not empty")
  if type(label) is not int or not 0 <= label < len(choices):
    raise InputError(
      f"{where}: label {label!r:.40} must be a whole number, at least 0 and less than"
      f" the {len(choices)} choices"
    )
  try:
    for text in (context, *choices):
      tokenizers.check_unicode(text)
  except InputError as error:
    raise InputError(f"{where}: {error}") from None
  return Question(context, tuple(choices), label, where)


def read_questions(text: str, name: str) -> list[Question]:
  """The questions of a JSONL file: context, choices and label, further fields ignored.

  Args:
    text: the file's.
    name: the file's, for messages.

  Raises:
    InputError: says which line and what is wrong there, or that there is none.
  """
  rows = files.parse_records(text, name)
  questions = [_question(row, where) for where, row in rows]
  if not questions:
    raise InputError(f"{name} is empty; it needs at least one question")
  return questions


def choice_rows(
  question: Question, tokenizer: tokenizers.Tokenizer, context: int
) -> tuple[list[Row], int]:
  """One row per choice, and how many of them lose the beginning of their context.

  Context and choice are tokenised as one text, because their tokens may reach over the
  border. The context's tokens are the longest common prefix of those of the context
  alone and those of it with each choice. What follows is scored: for all choices after
  the same tokens, so that none is charged for a border that the others do not have.

  Args:
    context: tokens that the model reads.

  Raises:
    InputError: nothing is left to predict a choice from, or it is too long.
  """
  opening = tokenizer.opens(question.context)
  texts = (question.context, *(question.context + c for c in question.choices))
  alone, *whole = ([*opening, *ids] for ids in tokenizer.encode_batch(texts))
  same = (len(set(ids)) == 1 for ids in zip(alone, *whole, strict=False))
  border = sum(itertools.takewhile(bool, same))
  if border == 0:
    raise InputError(
      f"{question.where}: no token of the context {question.context!r:.40} stands"
      " before every choice, and the tokenizer has none to open a text: lengthen it"
    )
  longest = max(len(ids) for ids in whole) - border
  if longest > context:
    raise InputError(
      f"{question.where}: a choice has {longest} tokens; the model's context holds"
      f" {context}: shorten it"
    )
  rows = []
  for ids in whole:
    kept = np.asarray(ids[-(context + 1) :], np.int32)
    rows.append(Row(kept, border - (len(ids) - len(kept))))
  return rows, sum(len(ids) > context + 1 for ids in whole)


def _accuracy(name: str, hits: Sequence[bool]) -> dict[str, float | None]:
  """The share of hits and its standard error, sqrt(p (1 - p) / (n - 1))."""
  n, p = len(hits), sum(hits) / len(hits)
  stderr = math.sqrt(p * (1.0 - p) / (n - 1)) if n > 1 else None
  return {name: p, f"{name}_stderr": stderr}


def score_questions(
  scorer: Scorer,
  params: Params,
  tokenizer: tokenizers.Tokenizer,
  questions: Sequence[Question],
  keep: folders.Keep = folders.nothing_kept,
) -> dict[str, float | int | None]:
  """Accuracy of the likeliest choice, the first one where several are.

  `accuracy` compares log-likelihoods, `accuracy_norm` log-likelihoods per UTF-8 byte of
  the choice. Standard errors are None for one question. Contexts too long for the
  model lose their beginning; `num_truncated` counts the choices after such contexts.

  Raises:
    InputError: see `choice_rows`.
  """
  rows, num_truncated = [], 0
  for question in questions:
    of_choices, cut = choice_rows(question, tokenizer, scorer.model.config.max_length)
    rows += of_choices
    num_truncated += cut
  scores = iter(scorer.log_likelihoods(params, rows, keep))
  hits, hits_norm = [], []
  for question in questions:
    total = np.array([np.sum(next(scores), dtype=np.float64) for _ in question.choices])
    num_bytes = np.array([len(choice.encode()) for choice in question.choices])
    hits.append(int(np.argmax(total)) == question.label)
    hits_norm.append(int(np.argmax(total / num_bytes)) == question.label)
  return {
    **_accuracy("accuracy", hits),
    **_accuracy("accuracy_norm", hits_norm),
    "num_questions": len(questions),
    "num_truncated": num_truncated,
  }
