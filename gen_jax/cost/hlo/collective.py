"""Collectives in HLO: kind, bytes, and axes of the mesh."""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from gen_jax.cost.hlo.program import Computation, Instruction

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation.

  Attributes:
    kind: one of KINDS.
    bytes: per device, of the larger side of the instruction: a gather's result, the
      input of the others.
    partners: devices that communicate, by index in the mesh: the first group, or the
      (from, to) pairs of a permutation.
  """

  kind: str
  bytes: int
  partners: tuple[tuple[int, ...], ...]

  @property
  def group_size(self) -> int:
    """Number of devices in a group."""
    return len(self.partners[0])

  @property
  def wire_bytes(self) -> float:
    """Bytes that a device sends in a ring: (n - 1) / n of all, twice to all-reduce."""
    if self.kind in ("collective-permute", "collective-broadcast"):
      return float(self.bytes)
    rounds = 2 if self.kind == "all-reduce" else 1
    return rounds * self.bytes * (self.group_size - 1) / self.group_size

  def axes(self, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """Mesh axes along which partners differ."""
    differs = np.zeros(len(mesh_shape), bool)
    for group in self.partners:
      places = np.stack(np.unravel_index(group, tuple(mesh_shape.values())))
      differs |= (places != places[:, :1]).any(1)
    return tuple(
      axis for axis, is_one in zip(mesh_shape, differs, strict=True) if is_one
    )


def read(here: Computation, ins: Instruction, num_devices: int) -> Collective | None:
  """The collective that an instruction starts, or None."""
  kind = ins.opcode.removesuffix("-start")
  if kind not in KINDS:
    return None
  partners = _partners(ins, num_devices)
  size = sum(shape.bytes for shape in here.operands(ins))
  if kind == "all-gather":
    size *= len(partners[0])
  if kind == "all-reduce" and here.name.startswith("all-reduce-scatter"):
    kind = "reduce-scatter"  # in TPU programs: all-reduce and slice in one fusion
  return Collective(kind, size, partners)


def _partners(ins: Instruction, num_devices: int) -> tuple[tuple[int, ...], ...]:
  """The first group of a collective, or the pairs of a permutation."""

  def numbers(text):
    return tuple(map(int, re.findall(r"\d+", text)))

  if pairs := ins.get(r"source_target_pairs=\{(\{.*?\})\}"):
    return tuple(numbers(pair) for pair in pairs.split("},{"))
  if group := ins.get(r"replica_groups=\{(\{[\d,]*\})"):
    return (numbers(group),)
  if groups := ins.get(r"replica_groups=(\[\S*)"):
    shape, source = groups.split("<=")
    return (tuple(_iota(source).reshape(numbers(shape))[0].tolist()),)
  if mesh := ins.get(r"replica_groups=(mesh.*?\})"):
    return (_mesh_group(mesh),)
  return (tuple(range(num_devices)),)


def _iota(text: str) -> np.ndarray:
  """'[4,2]T(1,0)' -> [0 2 4 6 1 3 5 7]."""
  dims, *order = (
    tuple(map(int, part.split(","))) for part in re.findall(r"[\[(]([\d,]+)", text)
  )
  grid = np.arange(math.prod(dims)).reshape(dims)
  return (grid.transpose(order[0]) if order else grid).ravel()


def _mesh_group(text: str) -> tuple[int, ...]:
  """The first group of "mesh['a'=2,'b'=4] {'b'}"; 'b':(2)2 is part of an axis."""
  mesh, _, wanted = text.rpartition("{")
  sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", mesh)}
  ids = np.arange(math.prod(sizes.values()))
  if "device_ids=" in mesh:
    listed = mesh.partition("device_ids=")[2]
    listed = listed.partition("<=")[2] or listed
    ids = _iota(listed) if "[" in listed else np.array(re.findall(r"\d+", listed), int)
  strides, stride = {}, ids.size
  for name, size in sizes.items():
    stride //= size
    strides[name] = stride
  at = np.zeros(1, int)
  for name, before, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", wanted):
    num = int(part or sizes[name])
    step = strides[name] * sizes[name] // (int(before or 1) * num)
    at = (at[:, None] + step * np.arange(num)).ravel()
  return tuple(ids[at].tolist())
