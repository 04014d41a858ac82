"""The interface between the trainer and everything that it trains."""

from typing import Any, NamedTuple, Protocol

from flax import linen as nn

from gen_jax.types import Array, Batch, Mean, Params, PyTree


class LossOut(NamedTuple):
  """The loss to minimise (loss.total / loss.count) and metrics, all as sums."""

  loss: Mean
  metrics: dict[str, Mean]


class Task(Protocol):
  """Two methods, so that the trainer needs no `if`."""

  @property
  def reads(self) -> tuple[str, ...]:
    """What it needs of the data besides images or tokens: 'caption', 'label'."""

  def init(self, key: Array, batch: Batch) -> Params:
    """Fresh parameters; leaves carry linen's logical axis names."""

  def loss(
    self, params: Params, frozen: PyTree, batch: Batch, keys: Array, *, train: bool
  ) -> LossOut:
    """The loss on a batch.

    Args:
      params: what is trained.
      frozen: needed but not trained: sharded, not donated, not optimised.
      batch: arrays [B, ...]; 'weights' are the weights of examples or tokens.
      keys: [B], one per example, so that the result does not depend on the number of
        microbatches, hosts and devices.
      train: whether dropout and the like are on.
    """


def apply(module: nn.Module, params: Params, *args: Any, **how: Any) -> Any:
  """What `module` gives for parameters and arguments; it keeps no other state.

  Args:
    how: of its method, and `method` and `rngs` of linen's `apply`.
  """
  return module.apply({"params": params}, *args, **how)
