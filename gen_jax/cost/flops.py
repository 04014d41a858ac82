"""Matrix FLOPs of a function, counted on its jaxpr: loops times their length.

XLA's cost analysis counts a loop's body once. This counts only matrix products, 2 m n k
each, and convolutions.
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import partial_eval

from gen_jax.cost import chips


@functools.cache
def peak(device: jax.Device) -> tuple[float, str]:
  """Peak FLOP/s of one device, and the source of the number.

  From `chips.CHIPS`, or measured: the best of five float32 matrix products of side
  1,024 on this device (for a CPU, on all cores).
  """
  if chip := chips.of(device):
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
  """Whether a product is of two activations, as in attention."""
  name, params = equation.primitive.name, equation.params
  batched = name == "dot_general" and params["dimension_numbers"][1][0]
  return bool(batched) or name.startswith(_FUSED)


def is_kernel(equation: Any) -> bool:
  """Whether this is a call of a Pallas kernel."""
  return equation.primitive.name == "pallas_call"


def count(
  fn: Callable[..., Any], *args: Any, unless: Callable[[Any], bool] = lambda e: False
) -> float:
  """FLOPs of fn(*args) in matrix products and convolutions; args may be abstract.

  Unused results are not counted.

  Args:
    unless: equations of the jaxpr to skip, with their bodies, e.g. `is_kernel`.

  >>> x = jax.ShapeDtypeStruct((8, 16), "float32")
  >>> count(lambda x: x @ x.T, x)
  2048.0
  >>> step = lambda c, _: (c @ c, None)
  >>> y = jax.ShapeDtypeStruct((4, 4), "float32")
  >>> count(lambda y: jax.lax.scan(step, y, length=10), y)
  1280.0
  """
  jaxpr = _trace(fn, *args)
  return _count(jaxpr, unless, [False] * len(jaxpr.invars))[0]


def with_gradient(
  fn: Callable[..., Any], *args: Any, unless: Callable[[Any], bool] = lambda e: False
) -> float:
  """FLOPs of fn(*args) and its gradient by the first argument, nothing counted twice.

  A product counts once, and once more for each operand that depends on that argument:
  three times in a trained layer, twice in a first one (its input is data) or in a
  frozen layer that gradients pass through, once in a layer before all trained ones.
  Recomputation by remat or a kernel is not counted. A `stop_gradient` after a product
  does not reduce that product's count.

  Args:
    unless: see `count`.

  >>> w, x = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((16, 4), (8, 16)))
  >>> with_gradient(lambda w, x: (x @ w).sum(), w, x) / (2 * 8 * 16 * 4)
  2.0
  """
  jaxpr = _trace(fn, *args)
  num = len(jax.tree.leaves(args[0]))
  return _count(jaxpr, unless, [i < num for i in range(len(jaxpr.invars))])[0]


def kernels(fn: Callable[..., Any], *args: Any) -> float:
  """`count` inside Pallas kernels, which are opaque to the compiler.

  Blocks that a kernel skips, e.g. under a causal mask, are counted too.
  """
  return count(fn, *args) - count(fn, *args, unless=is_kernel)


def _trace(fn: Callable[..., Any], *args: Any) -> Any:
  """The jaxpr of fn(*args), without dead code."""
  jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
  needed = [True] * len(jaxpr.outvars)
  return partial_eval.dce_jaxpr(jaxpr, needed, instantiate=True)[0]


def _bodies(equation: Any) -> list[Any]:
  """The jaxprs among an equation's parameters."""
  leaves = jax.tree.leaves(
    list(equation.params.values()), is_leaf=lambda x: _inner(x) is not None
  )
  return [_inner(x) for x in leaves if _inner(x) is not None]


def _times(equation: Any) -> int:
  """How often its bodies run: a loop's length, a kernel's grid, a mesh's shards."""
  name, params = equation.primitive.name, equation.params
  if name == "scan":
    return params["length"]
  if name == "pallas_call":
    return math.prod(n for n in params["grid_mapping"].grid if isinstance(n, int))
  if name == "shard_map":
    axes = params.get("newly_manual_axes") or params["manual_axes"]  # jax < 0.10.2
    return math.prod(params["mesh"].shape[axis] for axis in axes)
  return 1


def _carry(equation: Any) -> slice:
  """The inputs of a loop that its first outputs are carried to."""
  if equation.primitive.name == "scan":  # scanned arrays have one more axis outside
    (body,) = _bodies(equation)
    given, carried = (
      sum(x.aval.ndim == y.aval.ndim for x, y in zip(outer, inner, strict=True))
      for outer, inner in (
        (equation.invars, body.invars),
        (equation.outvars, body.outvars),
      )
    )
    return slice(given - carried, given)
  is_loop = equation.primitive.name == "while"
  return slice(-len(equation.outvars), None) if is_loop else slice(0)


def _count(
  jaxpr: Any, unless: Callable[[Any], bool], moved: list[bool]
) -> tuple[float, list[bool]]:
  """FLOPs, once more per differentiated operand; and which outputs are differentiated.

  Args:
    moved: whether each input depends on the differentiated argument.
  """
  known = dict(zip(jaxpr.invars, moved, strict=True))
  total = 0.0

  def moves(x):
    return not isinstance(x, core.Literal) and known.get(x, False)

  for equation in jaxpr.eqns:
    flops, outs = _equation(equation, unless, [moves(x) for x in equation.invars])
    total += 0.0 if unless(equation) else flops
    known.update(zip(equation.outvars, outs, strict=True))
  return total, [moves(x) for x in jaxpr.outvars]


def _equation(
  equation: Any, unless: Callable[[Any], bool], moved: list[bool]
) -> tuple[float, list[bool]]:
  """`_count` of one equation."""
  name, outvars = equation.primitive.name, equation.outvars
  if name in _PRODUCTS:
    return (1 + sum(moved)) * _PRODUCTS[name](equation), [any(moved)]
  if name.startswith(_FUSED):
    return _fused(equation, moved), [any(moved)] * len(outvars)
  found = []
  for body in _bodies(equation):  # one input fewer in `cond`, some more in kernels
    less = len(moved) - len(body.invars)
    given = moved[max(less, 0) :] + [any(moved)] * -less
    found.append(_count(body, unless, given))
  inner = [outs for _, outs in found if len(outs) == len(outvars)]
  moves = any(moved) and name != "stop_gradient"
  outs = [any(x) for x in zip(*inner, strict=True)] or [moves] * len(outvars)
  floats = [jnp.issubdtype(x.aval.dtype, jnp.inexact) for x in outvars]
  outs = [out and is_float for out, is_float in zip(outs, floats, strict=True)]
  carry = _carry(equation)
  again = [old or new for old, new in zip(moved[carry], outs, strict=False)]
  if again != moved[carry]:
    moved[carry] = again
    return _equation(equation, unless, moved)
  totals = [total for total, _ in found]
  return max(totals) if name == "cond" else _times(equation) * sum(totals), outs


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


# Prefix of jax's name for cuDNN's attention, followed by fwd or bwd.
_FUSED = "dot_product_attention_"


def _fused(equation: Any, moved: list[bool]) -> float:
  """FLOPs of attention in one equation, masked blocks included.

  The backward pass recomputes the scores: five products of the size of forward's two.
  """
  query, key = (x.aval.shape for x in equation.invars[:2])  # [B, T, N, Dh], [B, S, ...]
  product = 2.0 * math.prod(query) * key[1]
  if equation.primitive.name.startswith(f"{_FUSED}bwd"):
    return 5 * product
  q, k, v = moved[:3]
  return product * ((1 + q + k) + (1 + (q or k) + v))


_PRODUCTS = {"dot_general": _dot, "conv_general_dilated": _conv}
