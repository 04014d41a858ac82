"""The cost of a compiled program, from its optimised HLO.

`cost(compiled.as_text())` follows the program of one device: a loop's body counts as
often as it runs (XLA's cost analysis counts it once), a fusion is one pass over memory,
an asynchronous pair one collective.

    flops        2 m n k of matrix products and convolutions, without taps on padding
                 or holes. Also products with one row, which are sums in TPU programs,
                 and the compiler's own attention kernels, whose FLOPs it states
    hbm_bytes    reads and writes of instructions, slices as slices; on-chip memory
                 (TPU's VMEM) is free
    collectives  each with its kind, bytes, partners and executions

Pallas kernels and other calls are opaque: `flops.kernels` counts the former.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

import numpy as np

from gen_jax.cost.hlo import collective, program
from gen_jax.cost.hlo.program import Computation, Instruction, Shape

_SLICES = ("dynamic-slice", "slice", "gather")
# Without memory traffic: aliases, and ends of operations counted at their start.
_FREE = {
  *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all"),
  *("partition-id", "replica-id", "opt-barrier", "copy-done", "slice-done"),
  *("async-done", "async-update", "send-done", "recv-done", "call-done"),
  *(f"{kind}-done" for kind in collective.KINDS),
}


@dataclasses.dataclass(frozen=True)
class Cost:
  """The cost of one device.

  Attributes:
    flops, hbm_bytes: see the module.
    collectives: {collective: executions}.
    open_loops: loops of unknown length; they count once.
  """

  flops: float = 0.0
  hbm_bytes: float = 0.0
  collectives: Mapping[collective.Collective, float] = dataclasses.field(
    default_factory=dict
  )
  open_loops: tuple[str, ...] = ()

  def __add__(self, other: "Cost") -> "Cost":
    keys = {**self.collectives, **other.collectives}
    times = {k: self.collectives.get(k, 0) + other.collectives.get(k, 0) for k in keys}
    flops, moved = self.flops + other.flops, self.hbm_bytes + other.hbm_bytes
    return Cost(flops, moved, times, self.open_loops + other.open_loops)

  def __rmul__(self, times: float) -> "Cost":
    exchanged = {key: times * value for key, value in self.collectives.items()}
    flops, moved = times * self.flops, times * self.hbm_bytes
    return Cost(flops, moved, exchanged, self.open_loops)


def cost(text: str) -> Cost:
  """The cost of one device in a program, from `compiled.as_text()`."""
  module = program.parse(text)
  return _Counter(module).computation(module.entry)


@dataclasses.dataclass(frozen=True, eq=False)
class _Counter:
  program: program.Program

  @functools.cache  # noqa: B019 (lives as long as one count)
  def computation(self, name: str) -> Cost:
    here = self.program.computations[name]
    return sum((self._instruction(here, x) for x in here.body.values()), Cost())

  def _instruction(self, here: Computation, ins: Instruction) -> Cost:
    """Cost of an instruction outside fusions."""
    if ins.opcode == "while":
      times = self.program.trips(here, ins)
      inner = self.computation(self.program.called(ins, "body").name)
      return inner + Cost(open_loops=(ins.name,)) if times is None else times * inner
    if ins.opcode == "conditional":
      names = re.findall(
        r"%([^\s,}]+)", ins.get(r"(branch_computations=\{.*?\})") or ""
      )
      names = names or re.findall(r"(?:true|false)_computation=%([^\s,]+)", ins.rest)
      return max(map(self.computation, names), key=lambda c: (c.flops, c.hbm_bytes))
    if ins.opcode in ("call", "call-start", "async-start"):
      key = "calls" if ins.opcode == "async-start" else "to_apply"
      return self.computation(self.program.called(ins, key).name)
    if ins.opcode in _FREE:
      return Cost()
    moved = Cost(hbm_bytes=self._read(here, ins) + self._written(here, ins))
    return moved + self._work(here, ins)

  def _work(self, here: Computation, ins: Instruction) -> Cost:
    """FLOPs and collectives of an instruction, also inside fusions."""
    if ins.opcode == "fusion":
      called = self.program.called(ins)
      return sum((self._work(called, x) for x in called.body.values()), Cost())
    if ins.opcode == "dot":
      return Cost(flops=_dot(ins, here.operands(ins)[0]))
    if ins.opcode == "convolution":
      return Cost(flops=_convolution(ins, *here.operands(ins)))
    if ins.opcode == "reduce" and ins.get(r'op_name="[^"]*/(dot_general)"'):
      is_product = self.program.origin(here, ins.operands[0]).opcode == "multiply"
      return Cost(flops=2.0 * is_product * math.prod(here.operands(ins)[0].dims))
    # Pallas kernels have metadata; for its own kernels the compiler states FLOPs.
    if ins.opcode == "custom-call" and "kernel_metadata" not in ins.rest:
      return Cost(flops=float(ins.get(r'"cost_estimate":\{"flops":"(\d+)"') or 0))
    found = collective.read(here, ins, self.program.num_devices)
    is_one = found is None or found.group_size == 1 or _is_under_way(here, ins)
    return Cost() if is_one else Cost(collectives={found: 1.0})

  def _read(self, here: Computation, ins: Instruction) -> float:
    if ins.opcode in _SLICES:
      return _in_hbm(ins.shapes)
    if ins.opcode == "dynamic-update-slice":
      return _in_hbm(here.body[ins.operands[1]].shapes)
    total = 0.0
    for place, name in enumerate(ins.operands):
      whole = _in_hbm(here.body[name].shapes)
      if whole and ins.opcode == "fusion":
        whole = min(whole, self._read_of(self.program.called(ins), place))
      total += whole
    return total

  def _read_of(self, called: Computation, place: int) -> float:
    """Bytes of a parameter that a fusion reads; inf for all."""
    total, pending = 0.0, [called.parameter(place).name]
    while pending:
      name = pending.pop()
      for user, at in called.uses(name):
        if user.opcode in _SLICES and at == 0:
          total += sum(x.bytes for x in user.shapes)
        elif user.opcode == "bitcast":
          pending.append(user.name)
        elif user.opcode == "fusion":
          total += self._read_of(self.program.called(user), at)
        elif not (
          (user.opcode == "dynamic-update-slice" and at == 0)  # written in place
          or user.opcode == "tuple"  # passed on
          or _is_under_way(called, user)
        ):
          return math.inf
    return total

  def _written(self, here: Computation, ins: Instruction) -> float:
    if ins.opcode == "dynamic-update-slice":
      return _in_hbm(here.body[ins.operands[1]].shapes)
    if ins.opcode.endswith("-start"):  # its tuple repeats the operands
      return _in_hbm(ins.shapes) - _in_hbm(here.operands(ins))
    if ins.opcode != "fusion":
      return _in_hbm(ins.shapes)
    called = self.program.called(ins)
    if "AsyncCollectiveStart" in called.root.rest:
      return _in_hbm(ins.shapes[1:2])
    is_tuple = called.root.opcode == "tuple"
    total = 0.0
    for name, shape in zip(
      called.root.operands if is_tuple else (called.root.name,),
      ins.shapes if is_tuple else ins.shapes[:1],
      strict=True,
    ):
      inner = called.body[name]
      while inner.opcode == "bitcast":
        inner = called.body[inner.operands[0]]
      if inner.opcode == "dynamic-update-slice":
        update = called.body[inner.operands[1]].shapes[0]
        shape = update._replace(in_hbm=shape.in_hbm)
      if inner.opcode != "parameter" and not _is_under_way(called, inner):
        total += _in_hbm((shape,))
    return total


def _in_hbm(shapes: tuple[Shape, ...]) -> int:
  return sum(shape.bytes for shape in shapes if shape.in_hbm)


def _is_under_way(here: Computation, ins: Instruction) -> bool:
  """Whether a TPU program started this collective in an earlier fusion."""
  if "AsyncCollectiveDone" in ins.rest:
    return True
  return "chain_id=" in ins.rest and "AsyncCollectiveStart" not in here.root.rest


def _dot(ins: Instruction, lhs: Shape) -> float:
  contracted = ins.get(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
  depth = math.prod(lhs.dims[int(i)] for i in contracted.split(",") if i)
  return 2.0 * math.prod(ins.shapes[0].dims) * depth


def _convolution(ins: Instruction, lhs: Shape, rhs: Shape) -> float:
  """FLOPs of a convolution; TPU programs also write batched products as such.

  By convention taps on padding count, except if the padding is as wide as the window:
  then it only forms an axis of a product.
  """
  left, right, out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", ins.rest).groups()
  window = dict(re.findall(r"(\w+)=([\dx_-]+)", ins.get(r"window=\{([^}]*)\}") or ""))

  def field(key, i):
    default = "0_0" if key == "pad" else "1"
    return window[key].split("x")[i] if key in window else default

  taps = 1.0
  for i in range(sum(label.isdigit() for label in out)):
    taps *= _taps(
      lhs.dims[left.index(str(i))],
      rhs.dims[right.index(str(i))],
      ins.shapes[0].dims[out.index(str(i))],
      *(int(field(key, i)) for key in ("stride", "lhs_dilate", "rhs_dilate")),
      *map(int, field("pad", i).split("_")),
    )
  groups = int(ins.get(r"batch_group_count=(\d+)") or 1)
  rows = lhs.dims[left.index("b")] / groups
  return 2.0 * taps * rows * rhs.dims[right.index("i")] * rhs.dims[right.index("o")]


@functools.cache
def _taps(size, kernel, out, stride, lhs_dilate, rhs_dilate, low, high) -> int:
  """Number of (output, kernel) index pairs that count along one dimension."""
  at = np.arange(out)[:, None] * stride + np.arange(kernel)[None, :] * rhs_dilate - low
  meets = at % lhs_dilate == 0
  if low == high == (kernel - 1) * rhs_dilate:
    meets &= (at >= 0) & (at <= (size - 1) * lhs_dilate)
  return int(meets.sum())
