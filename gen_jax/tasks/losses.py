"""Losses per item, float32; the task averages them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen_jax.types import Array


class Scores(NamedTuple):
  """What a language model's loss and metrics need from logits; [B, T] each.

  Attributes:
    nats: float32, negative log-likelihood of the target.
    log_z: float32, logarithm of the softmax's denominator Z. Its square is the z-loss,
      which keeps logits from drifting: Chowdhery et al. 2022 (arXiv:2204.02311) section
      5, with weight 1e-4.
    is_hit: bool, whether the target has the highest score.
  """

  nats: Array
  log_z: Array
  is_hit: Array


def score(logits: Array, targets: Array) -> Scores:
  """Cross-entropy, log Z and hits.

  Args:
    logits: float32 [B, T, V], unnormalised log-probabilities.
    targets: int [B, T].
  """
  log_z = jax.nn.logsumexp(logits, axis=-1)
  own = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return Scores(log_z - own, log_z, jnp.argmax(logits, -1) == targets)
