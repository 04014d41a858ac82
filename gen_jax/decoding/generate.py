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
from gen_jax.types import Array, PyTree

Decode = Callable[[Array, PyTree], tuple[Array, PyTree]]


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
