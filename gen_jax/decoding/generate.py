"""Prompt in, continuation out: prefill once, then one compiled loop, token by token.

The model is a function `decode(tokens [B, T], cache, at) -> (logits [B, 1, V], cache)`
with parameters bound: scores of the token after place at[b] of row b. Row b of a batch
may have a prompt of its own length: prompts are padded on the right, and slots beyond a
row's length are overwritten before any query can see them (slot index = position).
Token i of row b is drawn with fold_in(keys[b], i): a sample depends neither on its
batch nor on how the loop was cut into pieces for streaming.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from gen_jax import ranges, rng
from gen_jax.decoding import filters
from gen_jax.types import Array, InputError, PyTree

Decode = Callable[[Array, PyTree, Array], tuple[Array, PyTree]]
Draw = Callable[[Array, Array, Array], Array]
FILTERS = ("repetition", "temperature", "top_k", "top_p", "min_p")


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How to draw text.

  Attributes:
    max_tokens: longest continuation, in tokens.
    temperature: 0 always takes the likeliest token.
    top_k: keep the k likeliest tokens; None keeps all.
    top_p: keep the likeliest tokens that reach this probability together, in (0, 1].
    min_p: drop tokens less than this share as likely as the likeliest, in [0, 1).
    repetition_penalty: makes what has occurred less likely, at least 1; 1 does not.
    order: in which the filters above are applied, all of FILTERS.
    stop: texts that end a continuation, and are left out of it.
  """

  max_tokens: ranges.Size = 200
  temperature: ranges.NotNegative = 1.0
  top_k: ranges.Count | None = None
  top_p: ranges.PositiveFraction = 1.0
  min_p: ranges.ProperFraction = 0.0
  repetition_penalty: Annotated[float, ranges.Range(1.0)] = 1.0
  order: tuple[str, ...] = FILTERS
  stop: tuple[str, ...] = ()

  def __post_init__(self):
    ranges.check(self)
    rules = {
      "order": (sorted(self.order) == sorted(FILTERS), f"all of {', '.join(FILTERS)}"),
      "stop": (all(self.stop), "texts of at least one character"),
    }
    for name, (holds, rule) in rules.items():
      if not holds:
        raise InputError(f"{name}={getattr(self, name)} must be {rule}")

  def idle(self) -> dict[str, str]:
    """{field: why it changes nothing}, of fields that another one switches off."""
    if self.temperature:
      return {}
    return dict.fromkeys(
      ("top_k", "top_p", "min_p"), "temperature=0 takes the likeliest"
    )

  def filter(self, logits: Array, seen: Array) -> Array:
    """Applies the filters in `order`; what is left is drawn from.

    Args:
      logits: float32 [B, V].
      seen: bool [B, V], tokens that have occurred.
    """
    parts = {
      "repetition": filters.repetition(self.repetition_penalty, seen),
      "temperature": filters.temperature(self.temperature or 1.0),
      "top_k": filters.top_k(self.top_k or logits.shape[-1]),
      "top_p": filters.top_p(self.top_p),
      "min_p": filters.min_p(self.min_p),
    }
    idle = {
      "repetition": self.repetition_penalty == 1,
      "temperature": self.temperature in (0, 1),
      "top_k": self.top_k is None,
      "top_p": self.top_p == 1,
      "min_p": self.min_p == 0,
    }
    used = [parts[name] for name in self.order if not idle[name]]
    return filters.chain(*used)(logits)

  def draw(self, logits: Array, seen: Array, keys: Array) -> Array:
    """One token per row, int32 [B]: the likeliest at temperature 0, else at random.

    Args:
      logits, seen: see `filter`.
      keys: [B].
    """
    logits = self.filter(logits, seen)
    if self.temperature == 0:
      return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """Where generation stands.

  Attributes:
    cache: what the model remembers; has a field `length` int32 [B].
    logits: float32 [B, V], scores of the next token.
    num_drawn: int32 [], tokens drawn so far.
    seen: bool [B, V], tokens of the prompt and of what has been drawn.
    done: bool [B], rows that have drawn one of `stops`.
    keys: [B], one key per row.
  """

  cache: Any
  logits: Array
  num_drawn: Array
  seen: Array
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
  logits, cache = decode(prompts, cache, lengths - 1)
  last = logits[:, 0]
  cache = dataclasses.replace(cache, length=lengths)
  is_prompt = jnp.arange(prompts.shape[1])[None, :] < lengths[:, None]
  seen = jnp.zeros(last.shape, bool)
  seen = jax.vmap(lambda s, tokens, real: s.at[tokens].max(real))(
    seen, prompts, is_prompt
  )
  done = jnp.zeros(lengths.shape, bool)
  return State(cache, last, jnp.int32(0), seen, done, keys)


def extend(
  decode: Decode, state: State, num_tokens: int, draw: Draw, stops: tuple[int, ...]
) -> tuple[State, Array, Array]:
  """Draws num_tokens more tokens for every row in one scan.

  Args:
    draw: (logits [B, V], seen [B, V], keys [B]) -> tokens int32 [B].
    stops: tokens after which a row is done and repeats the first of them.

  Returns:
    The new state, tokens int32 [B, num_tokens], and log-probabilities float32 [B,
    num_tokens] of those tokens as the model has them, before any filter.
  """

  def body(state, _):
    keys = rng.fold_in(state.keys, state.num_drawn)
    token = draw(state.logits, state.seen, keys)
    if stops:
      token = jnp.where(state.done, stops[0], token)
    at = jnp.take_along_axis(state.logits, token[:, None], axis=-1)[:, 0]
    logprob = at - jax.nn.logsumexp(state.logits, axis=-1)
    seen = jax.vmap(lambda s, t: s.at[t].set(True))(state.seen, token)
    done = state.done | jnp.isin(token, jnp.asarray(stops, jnp.int32))
    logits, cache = decode(token[:, None], state.cache, jnp.zeros_like(token))
    state = State(cache, logits[:, 0], state.num_drawn + 1, seen, done, state.keys)
    return state, (token, logprob)

  state, (tokens, logprobs) = jax.lax.scan(body, state, length=num_tokens)
  return state, tokens.T, logprobs.T
