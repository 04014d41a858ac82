"""Prompts that join and leave a batch of a fixed number of rows as room is made.

A prompt is read alone, by the program of its length bucket; then one program draws for
all rows, whoever is in them. So a continuation depends on its job alone, bit for bit,
and not on how many others there are, or on when it came.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import rng, tree
from gen_jax.decoding import filters, generate
from gen_jax.inference import text_generator
from gen_jax.models import transformer
from gen_jax.types import Array, InputError, Params

MOST_LIKELIEST = 20  # named next to each token
_NUMBERS = np.array([0.0, 1.0, 0.0, 0.0], np.float32)  # of a row that nobody uses
_SCORED_AT_ONCE = 64  # tokens of a prompt whose logits exist at once


@dataclasses.dataclass(frozen=True)
class Job:
  """One continuation to draw.

  Attributes:
    ids: tokens of the prompt, at least one and fewer than the context.
    key: [], of its random numbers.
    max_tokens: of the continuation; less where the context ends before.
    temperature: 0 is greedy.
    top_p: in (0, 1].
    stop: texts that end it.
    presence_penalty, frequency_penalty: of what it has drawn, see `filters.counted`.
    num_likeliest: tokens that are named next to each drawn one, at most MOST_LIKELIEST.
    is_scored: whether the tokens of the prompt are scored as well.
  """

  ids: Sequence[int]
  key: Array
  max_tokens: int
  temperature: float
  top_p: float
  stop: tuple[str, ...]
  presence_penalty: float = 0.0
  frequency_penalty: float = 0.0
  num_likeliest: int = 0
  is_scored: bool = False


def _likeliest(logits: Array, num: int) -> tuple[Array, Array]:
  """Ids int32 [..., num] and log-probabilities float32 of the likeliest tokens."""
  found, ids = jax.lax.top_k(logits, num)
  return ids, found - jax.nn.logsumexp(logits, axis=-1, keepdims=True)


def _listed(ids: np.ndarray, logprobs: np.ndarray, num: int):
  pairs = zip(ids[:, :num].tolist(), logprobs[:, :num].tolist(), strict=True)
  return [*pairs] if num else []


class Slots:
  """A batch of continuations of different age.

  Attributes:
    writer: whose model, tokenizer and other filters are used.
    num: rows of the batch: more are drawn in about the same time, and hold a context of
      keys and values each.
    context: tokens of prompt and continuation together, at most the model's.
    piece: tokens that `advance` draws for every row.
  """

  def __init__(
    self,
    writer: text_generator.TextGenerator,
    params: Params,
    num: int = 8,
    context: int | None = None,
    piece: int = 4,
  ):
    longest = writer.model.config.max_length
    self.context = longest if context is None else context
    if not 2 <= self.context <= longest:
      raise InputError(
        f"a context of {context} tokens must be at least 2 and at most the model's"
        f" {longest}"
      )
    if num < 1:
      raise InputError(f"{num} continuations at once must be at least 1")
    self.writer, self.num, self.piece = writer, num, piece
    is_stacked = "blocks" in params
    self._params = jax.jit(transformer.unstack)(params) if is_stacked else params
    self._rows: list[text_generator.Row | None] = [None] * num
    self._numbers = np.tile(_NUMBERS[:, None], num)
    self._num_likeliest = np.zeros(num, np.int32)
    self._most = min(MOST_LIKELIEST, writer.model.config.vocab_size)
    self._state = jax.jit(self._empty)()
    self._admit = jax.jit(self._admitted, donate_argnums=1)
    self._extend = jax.jit(self._extended, donate_argnums=1)
    self._score = jax.jit(self._scored)

  def _decoder(self, params):
    model = self.writer.model
    return lambda *args: model.apply({"params": params}, *args[:2], at=args[2])

  def _cache(self, num: int):
    return transformer.init_cache(
      self.writer.model.config, num, self.context + self.piece
    )

  def _empty(self) -> generate.State:
    num, vocab = self.num, self.writer.model.config.vocab_size
    return generate.State(
      self._cache(num),
      jnp.zeros((num, vocab), jnp.float32),
      jnp.zeros(num, jnp.int32),
      jnp.zeros((num, vocab), bool),
      jnp.ones(num, bool),
      rng.sample_keys(0, num),
      jnp.zeros((num, vocab), jnp.int32),
    )

  def _admitted(self, params, state, prompt, length, key, slot):
    given = (prompt[None], length[None], key[None])
    new = generate.prefill(self._decoder(params), self._cache(1), *given)
    new = dataclasses.replace(new, drawn=jnp.zeros_like(state.drawn[:1]))
    return jax.tree.map(lambda all, one: all.at[slot].set(one[0]), state, new)

  def _extended(self, params, state, is_used, numbers, is_noted):
    """Draws; a row that nobody uses stays at its beginning."""
    length = jnp.where(is_used, state.cache.length, 0)
    cache = dataclasses.replace(state.cache, length=length)
    state = dataclasses.replace(state, cache=cache)
    temperature, top_p, *penalties = numbers
    draw = self.writer.sampling.draw_by_row(temperature, top_p)
    presence, frequency = (x[:, None] for x in penalties)

    def penalise(logits, drawn):
      lower = filters.counted(presence, frequency, drawn)
      is_lowered = jnp.any((presence != 0) | (frequency != 0))
      return jax.lax.cond(is_lowered, lower, lambda logits: logits, logits)

    def note(logits):
      nothing = jax.eval_shape(lambda x: _likeliest(x, self._most), logits)
      zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), nothing)
      return jax.lax.cond(
        is_noted, lambda x: _likeliest(x, self._most), lambda _: zeros, logits
      )

    how = (self._decoder(params), state, self.piece, draw)
    stops = tuple(self.writer.tokenizer.stops)
    return generate.extend(*how, stops, penalise=penalise, note=note)

  def _scored(self, params, prompt):
    """Log-probabilities and likeliest tokens of prompt[1:]; prompt int32 [T]."""
    config = self.writer.model.config
    chunk = math.gcd(len(prompt), _SCORED_AT_ONCE)
    model = self.writer.model.clone(
      config=dataclasses.replace(config, head_chunk=chunk)
    )

    def measure(logits, targets):
      own = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
      logprobs = own - jax.nn.logsumexp(logits, axis=-1)
      return logprobs, _likeliest(logits, self._most)

    targets = jnp.roll(prompt, -1)[None]
    found, _ = model.apply(
      {"params": params},
      prompt[None],
      self._cache(1),
      logits_fn=measure,
      logits_fn_args=(targets,),
    )
    return jax.tree.map(lambda x: x[0], found)

  @property
  def room(self) -> int:
    """How many more jobs can be admitted now."""
    return self._rows.count(None)

  def job(self, ids: Sequence[int], key: Array) -> Job:
    """A job with the numbers of the writer's sampling."""
    how = self.writer.sampling
    numbers = (how.max_tokens, float(how.temperature), float(how.top_p))
    return Job(ids, key, *numbers, how.stop)

  def admit(self, job: Job) -> text_generator.Row:
    """Reads a prompt and gives it a row, which `advance` extends until it is done.

    A row is done at once, and takes no room, if its job asks for no tokens.
    """
    slot, size = self._rows.index(None), len(job.ids)
    if not 0 < size < self.context:
      raise ValueError(f"a prompt of {size} tokens in a context of {self.context}")
    padded = np.zeros(min(text_generator.bucket(size), self.context), np.int32)
    padded[:size] = job.ids
    room = min(job.max_tokens, self.context - size)
    row = text_generator.Row(self.writer.tokenizer, job.stop, room)
    if job.is_scored:
      found = jax.tree.map(tree.fetch, self._score(self._params, padded))
      logprobs, (ids, near) = jax.tree.map(lambda x: x[: size - 1], found)
      row.prompt = logprobs.tolist(), _listed(ids, near, job.num_likeliest)
    if row.done:  # nothing is to be drawn
      return row
    given = (padded, np.int32(size), job.key, np.int32(slot))
    self._state = self._admit(self._params, self._state, *given)
    penalties = (job.presence_penalty, job.frequency_penalty)
    self._numbers[:, slot] = job.temperature, job.top_p, *penalties
    self._num_likeliest[slot], self._rows[slot] = job.num_likeliest, row
    return row

  def drop(self, row: text_generator.Row) -> None:
    """Makes room: nobody waits for a row any longer, or it is done."""
    slot = self._rows.index(row)
    self._rows[slot], self._numbers[:, slot] = None, _NUMBERS
    self._num_likeliest[slot] = 0

  def advance(self) -> list[tuple[text_generator.Row, str]]:
    """Draws for all rows: each with its new text; those that are done have left."""
    is_used = np.array([row is not None for row in self._rows])
    given = (is_used, self._numbers.copy(), self._num_likeliest.any())
    self._state, *drawn = self._extend(self._params, self._state, *given)
    tokens, logprobs, (ids, near) = jax.tree.map(tree.fetch, drawn)
    found = []
    for i, row in enumerate(self._rows):
      if row is not None:
        likeliest = _listed(ids[i], near[i], int(self._num_likeliest[i]))
        found.append((row, row.extend(tokens[i], logprobs[i], likeliest)))
    for row, _ in found:
      if row.done:
        self.drop(row)
    return found

  def run(self, jobs: Iterable[Job]) -> Iterator[tuple[int, text_generator.Sample]]:
    """Draws for all jobs; yields (number of a job, its sample) as each is done."""
    waiting = collections.deque(enumerate(jobs))
    numbers: dict[text_generator.Row, int] = {}
    while waiting or numbers:
      while waiting and self.room:
        number, job = waiting.popleft()
        row = self.admit(job)
        if row.done:
          yield number, row.sample()
        else:
          numbers[row] = number
      for row, _ in self.advance():
        if row.done:
          yield numbers.pop(row), row.sample()
