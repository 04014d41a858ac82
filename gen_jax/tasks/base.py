"""The contract between the trainer and everything it can train."""

from typing import NamedTuple, Protocol

from gen_jax.types import Array, Batch, Mean, Params, PyTree


class LossOut(NamedTuple):
  """What to minimise (loss.total / loss.count) and what to watch, all as sums."""

  loss: Mean
  metrics: dict[str, Mean]


class Task(Protocol):
  """Two methods, so that the trainer needs no `if`.

  Attributes:
    reads: what data must give besides images or tokens: 'caption', 'label'.
  """

  reads: tuple[str, ...]

  def init(self, key: Array, batch: Batch) -> Params:
    """Fresh parameters; leaves carry linen's logical axis names."""
    ...

  def loss(
    self, params: Params, frozen: PyTree, batch: Batch, keys: Array, *, train: bool
  ) -> LossOut:
    """The loss on a batch.

    Args:
      params: what is trained.
      frozen: what is needed but not trained: sharded, not donated, not optimised.
      batch: arrays [B, ...]; 'weights' says what counts.
      keys: [B], one per example: microbatches, hosts and devices change nothing.
      train: whether dropout and the like are on.
    """
    ...
