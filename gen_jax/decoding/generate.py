"""Text generation: prefill once, then one compiled loop, token by token.

The model is a function `decode(tokens [B, T], cache, at) -> (logits [B, 1, V], cache)`
with parameters bound; logits[b] score the token after position at[b] of sequence b.
Prompts of a batch may differ in length: they are padded on the right, and cache slots
beyond a sequence's length are overwritten before a query sees them (slot = position).
Token i of sequence b is drawn with fold_in(keys[b], i): a sample depends neither on its
batch nor on how the loop is split for streaming.
"""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from gen_jax import ranges
from gen_jax.decoding import filters
from gen_jax.types import Array, InputError, PyTree

Decode = Callable[[Array, PyTree, Array], tuple[Array, PyTree]]
Draw = Callable[[Array, Array, Array], Array]
FILTERS = ("repetition", "temperature", "top_k", "top_p", "min_p")


def _can_occur(text: str) -> bool:
  """Whether a text may hold this one: not empty, no half of a surrogate pair."""
  return text != "" and text == text.encode(errors="replace").decode()


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How to draw text.

  Attributes:
    max_tokens: maximum length of the continuation, in tokens.
    temperature: 0 is greedy decoding.
    top_k: keep the k likeliest tokens; None keeps all.
    top_p: keep the likeliest tokens whose probabilities sum to this, in (0, 1].
    min_p: drop tokens below this share of the likeliest one's probability, in [0, 1).
    repetition_penalty: of tokens that have occurred, at least 1; 1 changes nothing.
    order: of the filters above, a permutation of FILTERS.
    stop: texts that end a continuation and are not part of it.
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
      "stop": (all(map(_can_occur, self.stop)), "valid Unicode of 1 character or more"),
    }
    for name, (holds, rule) in rules.items():
      if not holds:
        raise InputError(f"{name}={getattr(self, name)} must be {rule}")

  def idle(self) -> dict[str, str]:
    """{field or 'seed': why it has no effect} of what another field disables."""
    if self.temperature:
      return {}
    return dict.fromkeys(
      ("top_k", "top_p", "min_p", "seed"), "temperature=0 takes the likeliest"
    )

  def filter(
    self,
    logits: Array,
    seen: Array,
    own: Mapping[str, filters.Filter] = types.MappingProxyType({}),
  ) -> Array:
    """Applies the filters in `order`; dropped tokens have logit -inf.

    Args:
      logits: float32 [B, V].
      seen: bool [B, V], tokens that have occurred.
      own: {name of FILTERS: filter} in place of those of the fields.
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
    parts, idle = {**parts, **own}, {**idle, **dict.fromkeys(own, False)}
    used = [parts[name] for name in self.order if not idle[name]]
    return filters.chain(*used)(logits)

  def draw(self, logits: Array, seen: Array, keys: Array) -> Array:
    """One token per sequence, int32 [B]: argmax at temperature 0, else sampled.

    Args:
      logits, seen: see `filter`.
      keys: [B].
    """
    logits = self.filter(logits, seen)
    if self.temperature == 0:
      return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)

  def draw_by_row(self, temperature: Array, top_p: Array) -> Draw:
    """`draw` with numbers of its own for each row, in place of the fields.

    What is not asked for by any row is not computed.

    Args:
      temperature: float32 [B], 0 is greedy.
      top_p: float32 [B] in (0, 1].
    """
    is_drawn, is_cut = temperature > 0, top_p < 1

    def nucleus(logits):
      cut = filters.top_p(top_p[:, None])
      return jax.lax.cond(
        jnp.any(is_drawn & is_cut),
        lambda: jnp.where(is_cut[:, None], cut(logits), logits),
        lambda: logits,
      )

    heat = filters.temperature(jnp.where(is_drawn, temperature, 1.0)[:, None])

    def draw(logits, seen, keys):
      logits = self.filter(logits, seen, {"temperature": heat, "top_p": nucleus})
      best = jnp.argmax(logits, axis=-1)
      drawn = jax.lax.cond(
        jnp.any(is_drawn),
        lambda: jax.vmap(jax.random.categorical)(keys, logits),
        lambda: best,
      )
      return jnp.where(is_drawn, drawn, best).astype(jnp.int32)

    return draw


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """State of generation.

  Attributes:
    cache: the model's; has a field `length` int32 [B].
    logits: float32 [B, V], of the next token.
    num_drawn: int32 [B], tokens drawn so far.
    seen: bool [B, V], tokens of the prompt and of the continuation so far.
    done: bool [B], sequences that have drawn one of `stops`.
    keys: [B], one key per sequence.
    drawn: int32 [B, V], how often each token was drawn; None: it is not counted.
  """

  cache: Any
  logits: Array
  num_drawn: Array
  seen: Array
  done: Array
  keys: Array
  drawn: Array | None = None


def prefill(
  decode: Decode, cache: PyTree, prompts: Array, lengths: Array, keys: Array
) -> State:
  """Runs the model on the prompts; returns the state before the first drawn token.

  Args:
    prompts: int [B, T], padded on the right with any tokens.
    lengths: int [B] in 1 .. T, prompt lengths without padding.
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
  return State(cache, last, jnp.zeros_like(lengths), seen, done, keys)


def extend(
  decode: Decode,
  state: State,
  num_tokens: int,
  draw: Draw,
  stops: tuple[int, ...],
  *,
  penalise: Callable[[Array, Array], Array] | None = None,
  note: Callable[[Array], PyTree] = lambda logits: (),
) -> tuple[State, Array, Array, PyTree]:
  """Draws num_tokens more tokens for every sequence in one scan.

  Args:
    draw: (logits [B, V], seen [B, V], keys [B]) -> tokens int32 [B].
    stops: tokens that end a sequence, which then repeats stops[0].
    penalise: (logits, `State.drawn`) -> the logits that `draw` gets.
    note: logits float32 [B, V] -> what else is kept of every step, a tree of [B, ...].

  Returns:
    The new state, tokens int32 [B, num_tokens], their log-probabilities float32 [B,
    num_tokens] under the model, before any filter, and the notes, [B, num_tokens, ...].
  """

  def body(state, _):
    keys = jax.vmap(jax.random.fold_in)(state.keys, state.num_drawn)
    logits = state.logits if penalise is None else penalise(state.logits, state.drawn)
    token = draw(logits, state.seen, keys)
    if stops:
      token = jnp.where(state.done, stops[0], token)
    at = jnp.take_along_axis(state.logits, token[:, None], axis=-1)[:, 0]
    logprob = at - jax.nn.logsumexp(state.logits, axis=-1)
    seen = jax.vmap(lambda s, t: s.at[t].set(True))(state.seen, token)
    done = state.done | jnp.isin(token, jnp.asarray(stops, jnp.int32))
    drawn = state.drawn
    if drawn is not None:
      drawn = jax.vmap(lambda d, t: d.at[t].add(1))(drawn, token)
    kept = (token, logprob, note(state.logits))
    logits, cache = decode(token[:, None], state.cache, jnp.zeros_like(token))
    num = state.num_drawn + 1
    state = State(cache, logits[:, 0], num, seen, done, state.keys, drawn)
    return state, kept

  state, kept = jax.lax.scan(body, state, length=num_tokens)
  by_row = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), kept)
  return state, *by_row
