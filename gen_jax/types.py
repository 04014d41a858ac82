"""Shared types: array aliases, means kept as sums, and the user errors of `errors`."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.errors import (
  Diverged,
  InputError,
  Unavailable,
  first_line,
  one_line,
  unknown,
  unsupported,
)

__all__ = (
  "UNCONDITIONAL",
  "Array",
  "Batch",
  "Diverged",
  "GeometricMean",
  "InputError",
  "Mean",
  "Params",
  "PyTree",
  "States",
  "Unavailable",
  "first_line",
  "one_line",
  "unknown",
  "unsupported",
)

Array = jax.Array
PyTree = Any
Params = PyTree
Batch = dict[str, Array]


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
    on = jnp if isinstance(self.count, jax.Array) else np  # of a step, or on the host
    return self.total / on.maximum(self.count, np.finfo(np.float32).tiny)


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
