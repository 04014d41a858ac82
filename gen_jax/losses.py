"""Losses as sums: each returns a `Mean`, never a mean already taken."""

import jax
import jax.numpy as jnp
import optax

from gen_jax.types import Array, Mean


def cross_entropy(logits: Array, targets: Array, weights: Array) -> Mean:
  """Negative log-likelihood in nats per target.

  Args:
    logits: float32 [B, T, V], unnormalised log-probabilities.
    targets: int [B, T].
    weights: float [B, T], 0 where there is no target.

  Returns:
    Mean over targets: total nats, and the sum of weights.
  """
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  return Mean.of(nats, weights)


def z_loss(logits: Array, weights: Array) -> Mean:
  """(log Z)^2 per target, Z the softmax's denominator: keeps logits from drifting.

  Args and returns as `cross_entropy`. Source: Chowdhery et al. 2022 (arXiv:2204.02311)
  section 5, who weigh it by 1e-4.
  """
  return Mean.of(jnp.square(jax.nn.logsumexp(logits, axis=-1)), weights)
