"""Low-rank adapters (LoRA) for any model: a small update of frozen weights.

A kernel W [*in, *out] is used as W + scale * (a b), with a [*in, r] and b [r, *out].
b starts at zero, so that training starts exactly from the base. Kernels are chosen by
their paths, so this works for every model without a change to its code.

Which axes are inputs follows from the axes' names: a kernel that ends in `head_dim`
has two output axes (heads and head_dim), any other has one, its last; a convolution's
window counts as input. Stacked layers [L, ...] get an adapter each: a [L, *in, r].

The base weights are part of `frozen`: sharded like any parameters, not donated, not
optimised, saved once. The product is added to the kernel, not to its output: this works
for every layer, but needs memory for the gradient of the whole kernel.

Source: Hu et al. 2021 (arXiv:2106.09685) section 4.1, which likewise scales by alpha/r.
"""

import dataclasses
import functools
import math
import re
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import ranges, rng, tree
from gen_jax.nn import linear
from gen_jax.tasks import base
from gen_jax.types import Array, Batch, InputError, Params, PyTree


class Frozen(NamedTuple):
  """The base weights, and what the inner task itself needs frozen."""

  base: Params
  inner: PyTree


@dataclasses.dataclass(frozen=True)
class LoRA:
  """Which kernels to adapt, and how.

  Attributes:
    rank: r.
    alpha: the scale is alpha / rank.
    pattern: regex; kernels whose path contains a match are adapted.
  """

  rank: ranges.Size = 8
  alpha: ranges.NotNegative = 16.0
  pattern: str = r"attention/(query|value)/kernel$"

  def __post_init__(self):
    ranges.check(self)
    try:
      re.compile(self.pattern)
    except re.error as error:
      raise InputError(
        f"adapter.pattern={self.pattern!r} is not a regular expression: {error}"
      ) from None

  @property
  def scale(self) -> float:
    """alpha / rank."""
    return self.alpha / self.rank


def init(config: LoRA, boxed: Params, key: Array) -> Params:
  """Adapters {..., kernel: {a, b}} of the kernels of a model.

  a ~ N(0, 1 / fan_in) and b = 0, float32; each a depends on the kernel's path alone.

  Args:
    boxed: the model's parameters, abstract or not, with their axis names.

  Raises:
    InputError: the pattern matches no parameter, or one that is not a matrix.
  """
  leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=nn.meta.is_axis_metadata)
  params = {tree.path_str(path): leaf for path, leaf in leaves}
  chosen = [path for path in params if re.search(config.pattern, path)]
  if not chosen:
    kernels = sorted(path for path in params if path.endswith("kernel"))
    raise InputError(
      f"adapter.pattern={config.pattern!r} occurs in no parameter's path; there are:"
      f" {', '.join(kernels[:8])}, ..."
    )
  adapters: Params = {}
  for path in chosen:
    leaf = params[path]
    names = leaf.names if nn.meta.is_axis_metadata(leaf) else (None,) * leaf.ndim
    shape = leaf.value.shape if nn.meta.is_axis_metadata(leaf) else leaf.shape
    stacked, outputs = linear.split(names) if names else (0, 1)
    if len(shape) - stacked - outputs < 1:
      raise InputError(
        f"adapter.pattern={config.pattern!r} names {path} of shape {shape}, which is"
        " no matrix; end the pattern with kernel$"
      )
    made = _pair(config.rank, shape, names, rng.named(key, path))
    *above, last = path.split("/")
    node = adapters
    for name in above:
      node = node.setdefault(name, {})
    node[last] = made
  return adapters


def _pair(rank: int, shape, names, key: Array) -> Params:
  stacked, outputs = linear.split(names)
  cut = len(shape) - outputs
  fan_in = math.prod(shape[stacked:cut])
  a = jax.random.normal(key, (*shape[:cut], rank)) / fan_in**0.5
  b = jnp.zeros((*shape[:stacked], rank, *shape[cut:]))
  return {
    "a": nn.LogicallyPartitioned(a, (*names[:cut], None)),
    "b": nn.LogicallyPartitioned(b, (*names[:stacked], None, *names[cut:])),
  }


def merge(params: Params, adapters: Params, scale: float | Array) -> Params:
  """The weights W + scale * (a b) where there is an adapter, W elsewhere.

  >>> w, pair = jnp.ones((2, 3)), {'a': jnp.ones((2, 1)), 'b': jnp.ones((1, 3))}
  >>> float(merge({'w': w}, {'w': pair}, 0.5)['w'][0, 0])
  1.5
  """
  if not isinstance(params, dict):
    a, b = adapters["a"], adapters["b"]
    product = functools.partial(jnp.tensordot, axes=1)
    for _ in range(a.ndim + b.ndim - 2 - params.ndim):  # stacked layers
      product = jax.vmap(product)
    return params + (scale * product(a, b)).astype(params.dtype)
  return {
    name: merge(value, adapters[name], scale) if name in adapters else value
    for name, value in params.items()
  }


@dataclasses.dataclass(frozen=True, eq=False)
class Adapted:
  """A task whose parameters are adapters; `frozen` is a `Frozen`.

  Attributes:
    inner: the task of the base weights.
    config: what is adapted.
  """

  inner: base.Task
  config: LoRA

  @property
  def reads(self) -> tuple[str, ...]:
    """See `base.Task`."""
    return self.inner.reads

  def init(self, key: Array, batch: Batch) -> Params:
    """See `base.Task`."""
    boxed = jax.eval_shape(self.inner.init, key, batch)
    return init(self.config, boxed, key)

  def merged(self, adapters: Params, frozen: Frozen) -> Params:
    """The weights for the inner task."""
    return merge(frozen.base, adapters, self.config.scale)

  def loss(
    self, params: Params, frozen: Frozen, batch: Batch, keys: Array, *, train: bool
  ) -> base.LossOut:
    """See `base.Task`."""
    weights = self.merged(params, frozen)
    return self.inner.loss(weights, frozen.inner, batch, keys, train=train)
