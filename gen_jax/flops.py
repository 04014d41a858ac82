"""Matrix FLOPs of a function, counted on its jaxpr: loops times their length.

XLA's own cost analysis counts the body of a loop once and says nothing of the model;
this counts 2 m n k for every matrix product and the like for convolutions, forward and
backward, and nothing else.
"""

import math
from collections.abc import Callable
from typing import Any

import jax


def count(fn: Callable[..., Any], *args: Any) -> float:
  """FLOPs of fn(*args) in matrix products and convolutions; args may be abstract.

  >>> x = jax.ShapeDtypeStruct((8, 16), "float32")
  >>> count(lambda x: x @ x.T, x)
  2048.0
  >>> step = lambda c, _: (c @ c, None)
  >>> y = jax.ShapeDtypeStruct((4, 4), "float32")
  >>> count(lambda y: jax.lax.scan(step, y, length=10), y)
  1280.0
  """
  return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def _count(jaxpr: Any) -> float:
  total = 0.0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
      total += _dot(equation)
    elif name == "conv_general_dilated":
      total += _conv(equation)
    elif name == "cond":
      total += max(_count(branch.jaxpr) for branch in params["branches"])
    else:
      times = params.get("length", 1) if name == "scan" else 1
      for inner in jax.tree.leaves(
        list(params.values()), is_leaf=lambda x: _inner(x) is not None
      ):
        if _inner(inner) is not None:
          total += times * _count(_inner(inner))
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
