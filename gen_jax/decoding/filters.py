"""Token filters: logits float32 [B, V] -> logits [B, V], chained in any order.

A filtered token has logit -inf. Thresholds may be traced; only top_k's k is static.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen_jax.types import Array

Filter = Callable[[Array], Array]


def chain(*filters: Filter) -> Filter:
  """Applies the filters from left to right; none is the identity."""

  def apply(logits: Array) -> Array:
    for f in filters:
      logits = f(logits)
    return logits

  return apply


def temperature(value: float | Array) -> Filter:
  """Divides logits by value > 0: below 1 sharper, above 1 flatter.

  >>> temperature(0.5)(jnp.array([[1.0, 2.0]])).tolist()
  [[2.0, 4.0]]
  """
  return lambda logits: logits / value


def top_k(k: int) -> Filter:
  """Keeps the k most likely tokens, and those equal to the k-th. Fan et al. 2018.

  >>> top_k(2)(jnp.array([[1.0, 3.0, 2.0]])).tolist()
  [[-inf, 3.0, 2.0]]
  """

  def apply(logits: Array) -> Array:
    kth = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]
    return jnp.where(logits < kth, -jnp.inf, logits)

  return apply


def top_p(p: float | Array) -> Filter:
  """Keeps the smallest set of most likely tokens whose probability reaches p.

  Source: Holtzman et al. 2020 (arXiv:1904.09751). p in (0, 1]; 1 keeps all.

  >>> jnp.isfinite(top_p(0.6)(jnp.log(jnp.array([[0.5, 0.3, 0.2]])))).tolist()
  [[True, True, False]]
  """

  def apply(logits: Array) -> Array:
    order = jnp.argsort(-logits, axis=-1)
    probs = jax.nn.softmax(jnp.take_along_axis(logits, order, -1), -1)
    before = jnp.cumsum(probs, -1) - probs  # mass of the strictly likelier tokens
    keep_sorted = before < p
    keep = jnp.put_along_axis(
      jnp.zeros_like(keep_sorted), order, keep_sorted, axis=-1, inplace=False
    )
    return jnp.where(keep, logits, -jnp.inf)

  return apply


def min_p(p: float | Array) -> Filter:
  """Keeps tokens at least p times as likely as the likeliest. Nguyen et al. 2024.

  >>> jnp.isfinite(min_p(0.5)(jnp.log(jnp.array([[0.5, 0.3, 0.2]])))).tolist()
  [[True, True, False]]
  """

  def apply(logits: Array) -> Array:
    best = jnp.max(logits, -1, keepdims=True)
    return jnp.where(logits < best + jnp.log(p), -jnp.inf, logits)

  return apply


def counted(presence: Array, frequency: Array, drawn: Array) -> Filter:
  """Lowers what was drawn already: logit - presence [n > 0] - frequency n.

  Source: OpenAI's API reference, presence_penalty and frequency_penalty.

  Args:
    presence, frequency: float32 [B, 1]; below 0 they encourage.
    drawn: int32 [B, V], n, how often each token was drawn; the prompt does not count.

  >>> drawn, one = jnp.array([[0, 1, 3]]), jnp.ones((1, 1))
  >>> counted(one, 0.5 * one, drawn)(jnp.zeros((1, 3))).tolist()
  [[0.0, -1.5, -2.5]]
  """
  return lambda logits: logits - presence * (drawn > 0) - frequency * drawn


def repetition(penalty: float | Array, seen: Array) -> Filter:
  """Penalises tokens that have occurred: logit / penalty, or times it if negative.

  Source: Keskar et al. 2019 (arXiv:1909.05858) section 4.1; penalty 1 changes nothing.

  Args:
    penalty: at least 1 to discourage.
    seen: bool [B, V], tokens of the prompt and of the continuation so far.

  >>> seen = jnp.array([[True, True, False]])
  >>> repetition(2.0, seen)(jnp.array([[4.0, -1.0, 3.0]])).tolist()
  [[2.0, -2.0, 3.0]]
  """

  def apply(logits: Array) -> Array:
    punished = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return jnp.where(seen, punished, logits)

  return apply
