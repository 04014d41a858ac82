"""Parses optimised HLO text into computations, with the trip counts of loops."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_LITERAL = ("constant", "parameter")  # their operand is a number


class Shape(NamedTuple):
  """An array: bits per element, dimensions, and whether it is in HBM."""

  bits: int
  dims: tuple[int, ...]
  in_hbm: bool

  @property
  def bytes(self) -> int:
    return -(-self.bits * math.prod(self.dims) // 8)


class Instruction(NamedTuple):
  """One line of HLO; `shapes` has several entries for a tuple."""

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  rest: str

  def get(self, pattern: str) -> str | None:
    """The first group of a regex in the attributes."""
    found = re.search(pattern, self.rest)
    return found and found.group(1)


@dataclasses.dataclass(frozen=True, eq=False)
class Computation:
  """Instructions by name, in order, and the root, whose value is returned."""

  name: str
  body: dict[str, Instruction]
  root: Instruction

  def operands(self, ins: Instruction) -> tuple[Shape, ...]:
    """Shapes of an instruction's operands, tuples unpacked."""
    return tuple(x for name in ins.operands for x in self.body[name].shapes)

  def parameter(self, place: int) -> Instruction:
    """The parameter with this number."""
    return next(
      ins
      for ins in self.body.values()
      if ins.opcode == "parameter" and ins.operands == (str(place),)
    )

  def uses(self, name: str) -> list[tuple[Instruction, int]]:
    """(user, operand index) of each use of a value."""
    return self._users.get(name, [])

  @functools.cached_property
  def _users(self) -> dict[str, list[tuple[Instruction, int]]]:
    users = collections.defaultdict(list)
    for ins in self.body.values():
      if ins.opcode not in _LITERAL:
        for place, name in enumerate(ins.operands):
          users[name].append((ins, place))
    return users


class _Scope(NamedTuple):
  """A computation; if of a fusion, also the fusion's operands and scope."""

  computation: Computation
  operands: tuple[str, ...] = ()
  outer: "_Scope | None" = None


_LINE = re.compile(r"^\s+(ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
_HEAD = re.compile(r"^(ENTRY )?%(\S+) \(.*\{$")
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,<=]*)\](\{[^}]*\})?")


def _shapes(text: str) -> Iterator[Shape]:
  for dtype, dims, layout in _ARRAY.findall(text):
    digits = re.search(r"\d+", dtype)
    bits = 8 if dtype == "pred" else int(digits.group()) if digits else 0
    sizes = tuple(int(n.lstrip("<=")) for n in dims.split(",") if n)
    yield Shape(bits, sizes, "S(" not in layout)


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
  """An HLO module.

  Attributes:
    computations: by name.
    entry: name of the entry computation.
    num_devices: number of partitions.
  """

  computations: dict[str, Computation]
  entry: str
  num_devices: int

  def called(self, ins: Instruction, key: str = "calls") -> Computation:
    """The computation that an attribute names."""
    return self.computations[ins.get(rf"\b{key}=%([^\s,]+)")]

  def _follow(self, scope: _Scope, name: str) -> tuple[_Scope, Instruction]:
    """`origin`, and its scope."""
    while True:
      ins = scope.computation.body[name]
      if ins.opcode in ("copy", "bitcast", "convert", "reshape"):
        name = ins.operands[0]
      elif ins.opcode == "fusion":
        called = self.called(ins)
        scope, name = _Scope(called, ins.operands, scope), called.root.name
      elif ins.opcode == "parameter" and scope.outer is not None:
        scope, name = scope.outer, scope.operands[int(ins.operands[0])]
      else:
        return scope, ins

  def origin(self, here: Computation, name: str) -> Instruction:
    """The instruction that computes a value, seen through copies and fusions."""
    return self._follow(_Scope(here), name)[1]

  def _constant(self, scope: _Scope, name: str) -> int | None:
    _, ins = self._follow(scope, name)
    is_number = ins.opcode == "constant" and re.fullmatch(r"-?\d+", ins.operands[0])
    return int(ins.operands[0]) if is_number else None

  def trips(self, here: Computation, loop: Instruction) -> int | None:
    """A loop's trip count: as annotated, or from its counter; None: data-dependent."""
    if noted := loop.get(r'"known_trip_count":\{"n":"(\d+)"'):
      return int(noted)
    condition = self.called(loop, "condition")
    scope, test = self._follow(_Scope(condition), condition.root.name)
    if test.opcode != "compare":
      return None
    sides = [self._follow(scope, name) for name in test.operands]
    indices = [ins.get(r"index=(\d+)") for _, ins in sides]
    counters = [int(i) for i in indices if i is not None]
    limits = [self._constant(scope, name) for name in test.operands]
    limits = [limit for limit in limits if limit is not None]
    start = self.origin(here, loop.operands[0])
    body = self.called(loop, "body")
    if len(counters) == 2 and start.opcode == "tuple":  # the limit is carried
      limits = [self._constant(_Scope(here), start.operands[counters[1]])]
    if not counters or len(limits) != 1 or start.opcode != "tuple":
      return None
    first = self._constant(_Scope(here), start.operands[counters[0]])
    scope, update = self._follow(_Scope(body), body.root.operands[counters[0]])
    steps = [self._constant(scope, name) for name in update.operands]
    steps = [s for s in steps if s is not None]
    if first is None or limits[0] is None or update.opcode != "add" or len(steps) != 1:
      return None
    distance = (limits[0] - first) / steps[0]
    is_closed = test.get(r"direction=(\w+)") in ("LE", "GE")
    return max(math.floor(distance) + 1 if is_closed else math.ceil(distance), 0)


def parse(text: str) -> Program:
  """Parses `compiled.as_text()`."""
  computations, entry, name, body, root = {}, "", "", {}, None
  for line in text.splitlines():
    if found := _HEAD.match(line):
      is_entry, name = found.groups()
      entry = name if is_entry else entry
      body, root = {}, None
    elif line.startswith("}"):
      computations[name] = Computation(name, body, root)
    elif found := _LINE.match(line):
      is_root, own, shape, opcode, rest = found.groups()
      operands, _, rest = rest.partition(")")
      is_literal = opcode in _LITERAL
      names = (operands,) if is_literal else tuple(re.findall(r"%([^\s,]+)", operands))
      body[own] = Instruction(own, opcode, tuple(_shapes(shape)), names, rest)
      root = body[own] if is_root else root
  devices = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
  return Program(computations, entry, int(devices.group(1)) if devices else 1)
