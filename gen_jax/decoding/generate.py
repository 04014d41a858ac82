"""Prompt in, continuation out: prefill once, then one compiled loop, token by token.

The model is a function `decode(tokens [B, T], cache) -> (logits [B, T, V], cache)` with
parameters bound. Row b of a batch may have a prompt of its own length: prompts are
padded on the right, and slots beyond a row's length are overwritten before any query
can see them (slot index = position). Token i of row b is drawn with
fold_in(keys[b], i): a sample depends neither on its batch nor on how the loop was cut
into pieces for streaming.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gen_jax import rng
from gen_jax.decoding import filters
from gen_jax.types import Array, InputError, PyTree

Decode = Callable[[Array, PyTree], tuple[Array, PyTree]]


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How to draw text.

  Attributes:
    max_tokens: longest continuation, in tokens.
    temperature: 0 always takes the likeliest token.
    top_k: keep the k likeliest tokens; None keeps all.
    top_p: keep the likeliest tokens that reach this probability together, in (0, 1].
    min_p: drop tokens less than this share as likely as the likeliest, in [0, 1).
  """

  max_tokens: int = 200
  temperature: float = 1.0
  top_k: int | None = None
  top_p: float = 1.0
  min_p: float = 0.0

  def __post_init__(self):
    rules = {
      "max_tokens": (self.max_tokens >= 1, "at least 1"),
      "temperature": (self.temperature >= 0, "at least 0 (0 is greedy)"),
      "top_k": (self.top_k is None or self.top_k >= 1, "at least 1, or None"),
      "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
      "min_p": (0 <= self.min_p < 1, "in [0, 1)"),
    }
    for name, (holds, rule) in rules.items():
      if not holds:
        raise InputError(f"{name}={getattr(self, name)} must be {rule}")

  def token_filter(self) -> filters.Filter:
    """Temperature, top-k, top-p, min-p, in this order."""
    if self.temperature == 0:
      return filters.greedy
    parts = [filters.temperature(self.temperature)]
    if self.top_k is not None:
      parts.append(filters.top_k(self.top_k))
    if self.top_p < 1:
      parts.append(filters.top_p(self.top_p))
    if self.min_p > 0:
      parts.append(filters.min_p(self.min_p))
    return filters.chain(*parts)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """Where generation stands.

  Attributes:
    cache: what the model remembers; has a field `length` int32 [B].
    logits: float32 [B, V], scores of the next token.
    num_drawn: int32 [], tokens drawn so far.
    done: bool [B], rows that have drawn `eos`.
    keys: [B], one key per row.
  """

  cache: Any
  logits: Array
  num_drawn: Array
  done: Array
  keys: Array


def prefill(
  decode: Decode, cache: PyTree, prompts: Array, lengths: Array, keys: Array
) -> State:
  """Reads the prompts.

  Args:
    prompts: int [B, T], padded on the right with anything.
    lengths: int [B] in 1 .. T, true prompt lengths.
    keys: [B].
  """
  logits, cache = decode(prompts, cache)
  last = jnp.take_along_axis(logits, (lengths - 1)[:, None, None], axis=1)[:, 0]
  cache = dataclasses.replace(cache, length=lengths)
  done = jnp.zeros(lengths.shape, bool)
  return State(cache, last, jnp.int32(0), done, keys)


def extend(
  decode: Decode, state: State, num_tokens: int, token_filter: filters.Filter, eos: int
) -> tuple[State, Array]:
  """Draws num_tokens more tokens for every row in one scan.

  Args:
    token_filter: logits [B, V] -> logits [B, V]; what is left is sampled from.
    eos: token after which a row is done and repeats `eos`; -1 for none.

  Returns:
    The new state, and tokens int32 [B, num_tokens].
  """

  def body(state, _):
    keys = rng.fold_in(state.keys, state.num_drawn)
    token = jax.vmap(jax.random.categorical)(keys, token_filter(state.logits))
    token = jnp.where(state.done, eos, token).astype(jnp.int32)
    logits, cache = decode(token[:, None], state.cache)
    done = state.done | (token == eos)
    return State(cache, logits[:, 0], state.num_drawn + 1, done, state.keys), token

  state, tokens = jax.lax.scan(body, state, length=num_tokens)
  return state, tokens.T
