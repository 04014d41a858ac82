"""Label encoder: a vector for each class, and one for no class at all."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from gen_jax import ranges, sharding
from gen_jax.nn import linear
from gen_jax.types import Array, States


@dataclasses.dataclass(frozen=True)
class Config:
  """Hyper-parameters.

  Attributes:
    num_classes: labels are 0 .. num_classes - 1; num_classes itself is no class.
    width: D of the vectors.
    dtype: of the vectors; parameters are float32.
  """

  num_classes: ranges.Vocabulary
  width: ranges.Size
  dtype: str = "float32"

  def __post_init__(self) -> None:
    ranges.check(self)


class LabelEncoder(nn.Module):
  """A table [num_classes + 1, D]; the last row is the null class.

  Source: Peebles & Xie 2022 (arXiv:2212.09748) section 3.2, for classifier-free
  guidance, Ho & Salimans 2022 (arXiv:2207.12598).
  """

  config: Config

  @nn.compact
  def __call__(self, labels: Array) -> States:
    """int [B] in [0, num_classes] -> States, vector [B, D]."""
    cfg = self.config
    # Not cut over tensor: num_classes + 1 seldom divides.
    names = ("position", "embed")
    init = linear.named(linear.normal(0.02), names)
    table = self.param("table", init, (cfg.num_classes + 1, cfg.width))
    look_up = sharding.gathering(lambda table, at: table[at[:, 0]], names)
    vector = look_up(table.astype(jnp.dtype(cfg.dtype)), labels[:, None])
    return States(vector=vector)
