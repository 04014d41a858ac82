"""Prompts that join and leave a batch of a fixed number of rows as room is made.

A prompt is read alone, by the program of its length bucket; then one program draws for
all rows, whoever is in them. So a continuation depends on its job alone, bit for bit,
and not on how many others there are, or on when it came.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import rng, tree
from gen_jax.decoding import generate
from gen_jax.inference import text_generator
from gen_jax.models import transformer
from gen_jax.types import Array, InputError, Params


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
  """

  ids: Sequence[int]
  key: Array
  max_tokens: int
  temperature: float
  top_p: float
  stop: tuple[str, ...]


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
    # Temperature and top_p.
    self._numbers = np.tile(np.array([[0.0], [1.0]], np.float32), num)
    self._state = jax.jit(self._empty)()
    self._admit = jax.jit(self._admitted, donate_argnums=1)
    self._extend = jax.jit(self._extended, donate_argnums=1)

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
    )

  def _admitted(self, params, state, prompt, length, key, slot):
    given = (prompt[None], length[None], key[None])
    new = generate.prefill(self._decoder(params), self._cache(1), *given)
    return jax.tree.map(lambda all, one: all.at[slot].set(one[0]), state, new)

  def _extended(self, params, state, is_used, numbers):
    """Draws; a row that nobody uses stays at its beginning."""
    length = jnp.where(is_used, state.cache.length, 0)
    cache = dataclasses.replace(state.cache, length=length)
    state = dataclasses.replace(state, cache=cache)
    draw = self.writer.sampling.draw_by_row(*numbers)
    stops = tuple(self.writer.tokenizer.stops)
    return generate.extend(self._decoder(params), state, self.piece, draw, stops)

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
    """Reads a prompt and gives it a row, which `advance` extends until it is done."""
    slot, size = self._rows.index(None), len(job.ids)
    if not 0 < size < self.context:
      raise ValueError(f"a prompt of {size} tokens in a context of {self.context}")
    padded = np.zeros(min(text_generator.bucket(size), self.context), np.int32)
    padded[:size] = job.ids
    given = (padded, np.int32(size), job.key, np.int32(slot))
    self._state = self._admit(self._params, self._state, *given)
    self._numbers[:, slot] = job.temperature, job.top_p
    room = min(job.max_tokens, self.context - size)
    row = text_generator.Row(self.writer.tokenizer, job.stop, room)
    self._rows[slot] = row
    return row

  def drop(self, row: text_generator.Row) -> None:
    """Makes room: nobody waits for a row any longer, or it is done."""
    slot = self._rows.index(row)
    self._rows[slot], self._numbers[:, slot] = None, (0.0, 1.0)

  def advance(self) -> list[tuple[text_generator.Row, str]]:
    """Draws for all rows: each with its new text; those that are done have left."""
    is_used = np.array([row is not None for row in self._rows])
    given = (is_used, self._numbers.copy())
    self._state, *drawn = self._extend(self._params, self._state, *given)
    tokens, logprobs = map(tree.fetch, drawn)
    found = [
      (row, row.extend(tokens[i], logprobs[i]))
      for i, row in enumerate(self._rows)
      if row is not None
    ]
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
        numbers[self.admit(job)] = number
      for row, _ in self.advance():
        if row.done:
          yield numbers.pop(row), row.sample()
