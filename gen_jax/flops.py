"""Matrix FLOPs of a function, counted on its jaxpr: loops times their length.

XLA's own cost analysis counts the body of a loop once and says nothing of the model;
this counts 2 m n k for every matrix product and the like for convolutions, forward and
backward, and nothing else.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from gen_jax import chips


@functools.cache
def peak(device: jax.Device) -> tuple[float, str]:
  """FLOP/s of one device and where the figure is from.

  From `chips.CHIPS`, or measured: the best of five float32 matrix products of 1,024 on
  this device, which is all of a CPU's cores.
  """
  for chip in chips.CHIPS.values():
    if device.device_kind.startswith(chip.kind):
      return chip.flops, f"{chip.kind}, dense bf16, as printed by its maker"
  size = 1024
  x = jax.device_put(jnp.ones((size, size), jnp.float32), device)
  product = jax.jit(jnp.matmul)
  product(x, x).block_until_ready()
  secs = []
  for _ in range(5):
    began = time.perf_counter()
    product(x, x).block_until_ready()
    secs.append(time.perf_counter() - began)
  return 2.0 * size**3 / min(secs), "measured, float32 matrix product"


def is_batched(equation: Any) -> bool:
  """Whether a product is of activations with activations, which is attention's kind."""
  is_dot = equation.primitive.name == "dot_general"
  return is_dot and bool(equation.params["dimension_numbers"][1][0])


def count(
  fn: Callable[..., Any], *args: Any, where: Callable[[Any], bool] = lambda e: True
) -> float:
  """FLOPs of fn(*args) in matrix products and convolutions; args may be abstract.

  Args:
    where: which equations of the jaxpr count, say `is_batched`.

  >>> x = jax.ShapeDtypeStruct((8, 16), "float32")
  >>> count(lambda x: x @ x.T, x)
  2048.0
  >>> step = lambda c, _: (c @ c, None)
  >>> y = jax.ShapeDtypeStruct((4, 4), "float32")
  >>> count(lambda y: jax.lax.scan(step, y, length=10), y)
  1280.0
  """
  return _count(jax.make_jaxpr(fn)(*args).jaxpr, where)


def kernels(fn: Callable[..., Any], *args: Any) -> float:
  """`count` of what stands in Pallas kernels, which compilers do not look into.

  Blocks that a kernel skips, say under a causal mask, count as if they were computed.
  """
  jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
  calls = (e for e in _equations(jaxpr) if e.primitive.name == "pallas_call")
  inside = {id(e) for call in calls for x in _bodies(call) for e in _equations(x)}
  return _count(jaxpr, lambda e: id(e) in inside)


def _equations(jaxpr: Any) -> Iterator[Any]:
  for equation in jaxpr.eqns:
    yield equation
    for body in _bodies(equation):
      yield from _equations(body)


def _bodies(equation: Any) -> list[Any]:
  """The jaxprs among an equation's parameters."""
  leaves = jax.tree.leaves(
    list(equation.params.values()), is_leaf=lambda x: _inner(x) is not None
  )
  return [_inner(x) for x in leaves if _inner(x) is not None]


def _times(equation: Any) -> int:
  """How often its bodies run: a loop's length, a kernel's grid, a mesh's devices."""
  name, params = equation.primitive.name, equation.params
  if name == "scan":
    return params["length"]
  if name == "pallas_call":
    return math.prod(n for n in params["grid_mapping"].grid if isinstance(n, int))
  return params["mesh"].size if name == "shard_map" else 1


def _count(jaxpr: Any, where: Callable[[Any], bool]) -> float:
  total = 0.0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
      total += _dot(equation) if where(equation) else 0.0
    elif name == "conv_general_dilated":
      total += _conv(equation) if where(equation) else 0.0
    elif name == "cond":
      total += max(_count(branch.jaxpr, where) for branch in params["branches"])
    else:
      times = _times(equation)
      total += times * sum(_count(body, where) for body in _bodies(equation))
  return total


def _inner(value: Any) -> Any:
  """The jaxpr in an equation's parameter, or None."""
  value = getattr(value, "jaxpr", value)
  return value if hasattr(value, "eqns") else None


def _dot(equation: Any) -> float:
  (contracted, _), _ = equation.params["dimension_numbers"]
  lhs = equation.invars[0].aval.shape
  depth = math.prod(lhs[axis] for axis in contracted)
  return 2.0 * math.prod(equation.outvars[0].aval.shape) * depth


def _conv(equation: Any) -> float:
  numbers = equation.params["dimension_numbers"]
  kernel = equation.invars[1].aval.shape
  depth = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
  out = math.prod(equation.outvars[0].aval.shape)
  # A dilated input (the gradient of a strided convolution) is zero in between.
  holes = math.prod(equation.params["lhs_dilation"])
  return 2.0 * out * depth / holes
