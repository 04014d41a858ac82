"""Learning rates by leaf of a model that is wider than its base: see `nn.widths`.

Which axes of a leaf are inputs follows from their names, so that one rule serves every
model: the rate of a leaf is that of the base times

    r = inputs of the base's leaf / inputs of the leaf,

1 for biases, norms, tables and what reads a text of constant width. This is for
updates whose size does not depend on the gradient's: Adam's, Lion's, Adafactor's.
Muon's matrices, orthogonal and scaled to Adam's size, have a spectral norm that grows
as sqrt(inputs), not inputs: theirs is sqrt(r). Plain gradients need other rules and are
refused.
"""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import optax

from gen_jax import tree
from gen_jax.nn import linear
from gen_jax.train import optim
from gen_jax.types import InputError, Params, PyTree

_LIKE_ADAM = ("adamw", "lion", "adafactor")


def _fan_in(leaf: PyTree) -> int:
  """Numbers of which each output is a sum; 1 for a bias, the rows of a table."""
  names: tuple[str | None, ...] = (None,)
  if nn.meta.is_axis_metadata(leaf):
    names, leaf = leaf.names or names, leaf.value
  stacked, outputs = linear.split(names)
  return math.prod(leaf.shape[stacked : leaf.ndim - outputs])


def ratios(params: Params, base: Params) -> dict[str, float]:
  """{path: r} of the leaves whose r is not 1.

  Args:
    params: abstract, with axis names.
    base: the same of the base model.
  """
  found = jax.tree.map(
    lambda wide, narrow: _fan_in(narrow) / _fan_in(wide),
    *(params, base),
    is_leaf=nn.meta.is_axis_metadata,
  )
  return {path: r for path, r in tree.flatten(found).items() if r != 1.0}


def rates(optimizer: str, ratios: Mapping[str, float]) -> dict[str, float]:
  """{path: multiplier of the learning rate} for an optimiser of this name.

  >>> rates("muon", {"mlp/up/kernel": 0.25, "head/kernel": 0.25})
  {'mlp/up/kernel': 0.5, 'head/kernel': 0.25}

  Raises:
    InputError: an optimiser whose rule is not known.
  """
  if optimizer == "muon":
    return {p: r**0.5 if optim.is_muon(p) else r for p, r in ratios.items()}
  if optimizer not in _LIKE_ADAM:
    raise InputError(
      f"base_width has no rule for optimizer={optimizer}; take"
      f" {', '.join(_LIKE_ADAM)} or muon, or base_width=None"
    )
  return dict(ratios)


def scaled(
  optimizer: optax.GradientTransformation, rates: Mapping[str, float]
) -> optax.GradientTransformation:
  """The optimiser with the rates of some leaves multiplied, and its state.

  Decoupled weight decay stays what it is: a leaf's update is computed as if the leaf
  were 1 / rate times as large, and multiplied by the rate.

  Args:
    optimizer: reads parameters for weight decay alone.
  """

  def update(gradients, state, params=None):
    enlarged = tree.map_with_path(lambda p, x: x / rates.get(p, 1.0), params)
    found, state = optimizer.update(gradients, state, enlarged)
    return tree.map_with_path(lambda p, x: x * rates.get(p, 1.0), found), state

  return optax.GradientTransformation(optimizer.init, update)
