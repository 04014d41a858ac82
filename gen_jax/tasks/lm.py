"""Language modelling: each token is predicted from those before it."""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from gen_jax import rng
from gen_jax.tasks import base, losses
from gen_jax.types import Array, Batch, GeometricMean, Mean, Params, PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
  """Cross-entropy of the next token.

  Attributes:
    model: a `transformer.Transformer`, or what is called like it.
    token_bytes: int [V], bytes of text of each token, 0 for special tokens. Gives bits
      per byte, comparable across tokenizers (of the text after normalisation).
    z_loss: weight of (log Z)^2 in the loss; metrics leave it out.
  """

  model: nn.Module
  token_bytes: np.ndarray
  z_loss: float = 0.0

  reads = ()

  def init(self, key: Array, batch: Batch) -> Params:
    """See `base.Task`; batch['inputs'] int [B, T]."""
    return self.model.init(key, batch["inputs"])["params"]

  def loss(
    self, params: Params, frozen: PyTree, batch: Batch, keys: Array, *, train: bool
  ) -> base.LossOut:
    """See `base.Task`; batch has inputs, targets int [B, T], weights [B, T].

    Rows packed from several documents also have positions and segments int [B, T].
    """
    del frozen
    dropout = {"dropout": rng.named(keys[0], "dropout")} if train else None
    packing = {k: batch[k] for k in ("positions", "segments") if k in batch}
    targets, weights = batch["targets"], batch["weights"]
    scores, _ = base.apply(
      self.model,
      params,
      batch["inputs"],
      logits_fn=losses.score,
      logits_fn_args=(targets,),
      train=train,
      rngs=dropout,
      **packing,
    )
    loss = nats = Mean.of(scores.nats, weights)
    if self.z_loss > 0:
      penalty = Mean.of(jnp.square(scores.log_z), weights)
      loss = Mean(nats.total + self.z_loss * penalty.total, nats.count)
    num_bytes = jnp.asarray(self.token_bytes, jnp.float32)[targets]
    return base.LossOut(
      loss,
      {
        "bits_per_byte": Mean(
          nats.total / math.log(2.0), Mean.of(num_bytes, weights).total
        ),
        "perplexity": GeometricMean(nats.total, nats.count),
        "accuracy": Mean.of(scores.is_hit, weights),
      },
    )
