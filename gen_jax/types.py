"""Shared types: array aliases, means kept as sums, and user errors."""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any
Params = PyTree
Batch = dict[str, Array]


class InputError(ValueError):
  """Bad input from the user: one line that names the value, the rule and the fix."""


class Unavailable(InputError):
  """A store did not answer for long: the same command goes on when it does."""


class Diverged(InputError):
  """Training diverged: its loss is not finite, and a retry would repeat that."""


def one_line(error: BaseException) -> str:
  """An error's message on one line, or its type if it has none.

  >>> one_line(ValueError('a\\n b')), one_line(KeyError())
  ('a b', 'KeyError')
  """
  return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
  """The first line of an error's message, without its full stop, or its type."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def unknown(kind: str, name: object, options: Iterable[str]) -> InputError:
  """Returns the error for a name not in `options`; it suggests the nearest ones.

  >>> str(unknown('sampler', 'dim', ['ddim', 'heun']))
  "unknown sampler 'dim': did you mean 'ddim'? There are: ddim, heun"
  """
  options = sorted(options)
  near = difflib.get_close_matches(str(name)[:80], options, n=2, cutoff=0.5)
  hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
  listed = ", ".join(options) if options else "none"
  return InputError(f"unknown {kind} {name!r:.200}: {hint}There are: {listed}")


def unsupported(kind: str, name: object, options: Iterable[str]) -> InputError:
  """Returns the error for something that exists elsewhere but not here.

  It suggests no near name: a Qwen2 loaded as the similar LLaMA gives wrong results.

  >>> str(unsupported('architecture', 'Qwen2ForCausalLM', ['LlamaForCausalLM']))
  "architecture 'Qwen2ForCausalLM' is not supported; supported: LlamaForCausalLM"
  """
  listed = ", ".join(sorted(options))
  return InputError(f"{kind} {name!r:.60} is not supported; supported: {listed}")


class States(NamedTuple):
  """What a denoising network is conditioned on; None where there is nothing.

  Attributes:
    tokens: float [B, S, D], for cross-attention.
    mask: bool [B, S], False at tokens that are not seen; None: all are seen.
    vector: float [B, D], added to the time embedding.
  """

  tokens: Array | None = None
  mask: Array | None = None
  vector: Array | None = None


UNCONDITIONAL = States()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
  """A weighted mean kept as (total, count), so that parts add up exactly.

  The sum of the `Mean`s of microbatches, ragged batches and hosts is the mean over all
  values; a mean of means is not.

  Attributes:
    total: float32 [], the weighted sum of the values.
    count: float32 [], the sum of the weights.

  >>> float((Mean(2.0, 1.0) + Mean(2.0, 3.0)).value)
  1.0
  """

  total: Array | float
  count: Array | float

  @classmethod
  def of(cls, values: Array, weights: Array) -> "Mean":
    """Sums `values` weighted by `weights` (same shape).

    A value of weight zero contributes exactly 0, even if it is NaN.
    """
    weights = weights.astype(jnp.float32)
    values = jnp.where(weights != 0, values.astype(jnp.float32), 0.0)
    return cls(jnp.sum(values * weights), jnp.sum(weights))

  def __add__(self, other: "Mean") -> "Mean":
    return type(self)(self.total + other.total, self.count + other.count)

  @property
  def value(self) -> Array | float:
    """total / count; 0 if the count is 0."""
    return self.total / jnp.maximum(self.count, jnp.finfo(jnp.float32).tiny)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GeometricMean(Mean):
  """exp of a mean of logarithms: the perplexity of a mean loss in nats.

  >>> round(float((GeometricMean(0.0, 1.0) + GeometricMean(2.0, 1.0)).value), 3)
  2.718
  """

  @property
  def value(self) -> Array:
    """exp(total / count); 1 if the count is 0."""
    return jnp.exp(super().value)
