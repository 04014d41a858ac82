"""Accelerators' data sheets, and TPU slices to compile for.

Numbers are peaks, so times computed from them are lower bounds.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib.metadata
import math
import os
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from gen_jax.errors import InputError, unknown

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One accelerator.

  Attributes:
    kind: prefix of jax's device_kind.
    flops: dense bf16 FLOP/s.
    hbm_bytes: usable memory: for TPUs by the compiler, else by the data sheet.
    hbm_bandwidth: bytes/s.
    links: to other chips; for TPUs two per dimension of the torus.
    link_bandwidth: bytes/s of one link in one direction.
    source: of these numbers.
    usd_per_hour: its list price at `PRICES_OF`; None: differs too much by provider.
  """

  kind: str
  flops: float
  hbm_bytes: float
  hbm_bandwidth: float
  links: int
  link_bandwidth: float
  source: str
  usd_per_hour: float | None = None

  def links_in(self, dims: Sequence[int]) -> int:
    """Links of a chip that are connected in a slice of these dimensions."""
    return min(self.links, sum(min(2, size - 1) for size in dims))


_DOCS = "cloud.google.com/tpu/docs"
# On demand, in the USA: cloud.google.com/tpu/pricing.
PRICES_OF = "mid-2025"
# The first matching kind is used: "TPU v5 lite" precedes "TPU v5".
CHIPS: Mapping[str, Chip] = {
  "v4": Chip("TPU v4", 275e12, 30.5 * GIB, 1228e9, 6, 50e9, f"{_DOCS}/v4", 3.22),
  "v5e": Chip("TPU v5 lite", 197e12, 15.75 * GIB, 819e9, 4, 50e9, f"{_DOCS}/v5e", 1.20),
  "v5p": Chip("TPU v5", 459e12, 95.74 * GIB, 2765e9, 6, 100e9, f"{_DOCS}/v5p", 4.20),
  "v6e": Chip("TPU v6", 918e12, 31.25 * GIB, 1640e9, 4, 112e9, f"{_DOCS}/v6e", 2.70),
  "tpu7x": Chip("TPU7x", 2307e12, 189.5 * GIB, 7380e9, 6, 100e9, f"{_DOCS}/tpu7x"),
  "a100": Chip("NVIDIA A100", 312e12, 80e9, 2039e9, 12, 25e9, "data sheet, SXM 80 GB"),
  "h100": Chip("NVIDIA H100", 989e12, 80e9, 3350e9, 18, 25e9, "data sheet, SXM"),
}


def of(device: jax.Device) -> Chip | None:
  """The data sheet of a device; None for one that has none here, such as a CPU."""
  return _of_kind(device.device_kind)


def _of_kind(kind: str) -> Chip | None:
  return next((c for c in CHIPS.values() if kind.startswith(c.kind)), None)


def price(kind: str) -> float | None:
  """USD for a chip-hour of jax's device_kind, at `PRICES_OF`; None: not known here."""
  found = _of_kind(kind)
  return found and found.usd_per_hour


def count(devices: Sequence[jax.Device]) -> int:
  """Chips that these devices are of; on some TPUs a chip has two."""
  places = [
    (getattr(d, "slice_index", 0), tuple(getattr(d, "coords", None) or (d.id,)))
    for d in devices
  ]
  return len(set(places))


# Slices for sale; others that the compiler knows are accepted too.
SLICES: Mapping[str, tuple[str, ...]] = {
  "v4": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
  "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
  "v5p": ("2x2x1", "2x2x2", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16"),
  "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
  "tpu7x": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
}


# Cloud's names of slices: v5litepod-16 and v6e-16 count chips, v5p-32 and v4-32 count
# TensorCores, two a chip.
_ACCELERATOR = re.compile(r"(v4|v5litepod|v5p|v6e)-(\d+)")
_CORES_PER_CHIP = {"v4": 2, "v5p": 2}


@dataclasses.dataclass(frozen=True, eq=False)
class Topology:
  """A TPU slice as a compilation target, or GPUs without a compiler; none is needed.

  Attributes:
    name: 'v5e:2x4', 'a100:256'.
    chip: of the slice.
    dims: chips along each dimension of the torus; of GPUs: their number.
    devices: jax's; one or two per chip, none for GPUs.
  """

  name: str
  chip: Chip
  dims: tuple[int, ...]
  devices: Sequence[jax.Device]

  @property
  def num_chips(self) -> int:
    """Number of chips."""
    return math.prod(self.dims)

  @property
  def devices_per_chip(self) -> int:
    """Number of devices that share a chip and its memory."""
    return len(self.devices) // self.num_chips


def _check_libtpu() -> None:
  pins = (re.match(r"libtpu==([\d.*]+)", r) for r in importlib.metadata.requires("jax"))
  wanted = next((pin.group(1) for pin in pins if pin), "*")
  try:
    have = importlib.metadata.version("libtpu")
  except importlib.metadata.PackageNotFoundError:
    have = None
  if have is None or not fnmatch.fnmatch(have, wanted):
    raise InputError(
      f"plans for TPUs need the compiler that goes with jax {jax.__version__}, libtpu"
      f" {wanted}; {f'{have} is' if have else 'none is'} installed: pip install"
      f" 'libtpu=={wanted}'"
    )


def slice_of(accelerator: str) -> str:
  """The slice that Cloud sells under a name; other names as they are.

  >>> slice_of("v5litepod-16"), slice_of("v5p-128"), slice_of("v6e:2x4")
  ('v5e:4x4', 'v5p:4x4x4', 'v6e:2x4')

  Raises:
    InputError: no slice for sale has so many chips.
  """
  match = _ACCELERATOR.fullmatch(accelerator)
  if match is None:
    return accelerator
  kind = match[1].replace("litepod", "e")
  cores = _CORES_PER_CHIP.get(kind, 1)
  sizes = {math.prod(map(int, dims.split("x"))): dims for dims in SLICES[kind]}
  chips = int(match[2]) / cores
  if chips not in sizes:
    known = [f"{match[1]}-{cores * size}" for size in sizes]
    raise unknown("accelerator type", accelerator, known)
  return f"{kind}:{sizes[chips]}"


def topology(name: str) -> Topology:
  """The slice of a chip and dimensions, as 'v5p:4x4x4' or 'v5litepod-16'; or GPUs.

  libtpu's compiler runs on any machine; no TPU is used.

  Raises:
    InputError: no such chip or slice, or no libtpu for this jax.
  """
  name = slice_of(name)
  kind, _, size = name.partition(":")
  if kind not in CHIPS:
    raise unknown("chip (of --topology)", kind, CHIPS)
  if kind not in SLICES:
    if not re.fullmatch(r"[1-9]\d{0,6}", size):
      raise InputError(f"--topology {name!r:.80}: give the number of GPUs, as {kind}:8")
    return Topology(name, CHIPS[kind], (int(size),), ())
  known = [f"{kind}:{dims}" for dims in SLICES[kind]]
  if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", size):
    raise unknown("topology", name, known)
  _check_libtpu()
  # Keeps libtpu from querying the metadata server, which only TPU machines have.
  for key, value in {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
  }.items():
    os.environ.setdefault(key, value)
  from jax.experimental import topologies  # needs libtpu, as nothing else does

  dims = tuple(map(int, size.split("x")))
  # One host per chip if a slice is smaller than a host's usual four chips.
  options = {"chips_per_host_bounds": (*dims, 1, 1)[:3]} if math.prod(dims) < 4 else {}
  try:
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=name, **options
    ).devices
  except jax.errors.JaxRuntimeError:
    raise unknown("topology", name, known) from None
  return Topology(name, CHIPS[kind], dims, np.asarray(found).ravel().tolist())
