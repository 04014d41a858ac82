"""Roofline: three lower bounds on the time of a program.

    compute       FLOPs of a device / its peak
    hbm           bytes of memory traffic / the memory's bandwidth
    interconnect  bytes that it sends / bandwidth of all its links

A step takes at least the largest of the three, if everything overlaps, and their sum if
nothing does. Peaks are the makers'; a real step takes longer.

Source: Williams, Waterman, Patterson 2009 (doi:10.1145/1498765.1498785), with the
interconnect as a third roof.
"""

import dataclasses
from collections.abc import Mapping

from gen_jax.cost.chips import Topology
from gen_jax.cost.hlo.cost import Cost


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Lower bounds on the seconds of one step."""

  compute_secs: float
  hbm_secs: float
  interconnect_secs: float

  @property
  def bounds(self) -> dict[str, float]:
    """The three bounds by name, in seconds."""
    return {
      "compute": self.compute_secs,
      "hbm": self.hbm_secs,
      "interconnect": self.interconnect_secs,
    }

  @property
  def step_secs(self) -> float:
    """Seconds of a step if everything overlaps."""
    return max(self.bounds.values())

  @property
  def serial_secs(self) -> float:
    """Seconds of a step if nothing overlaps."""
    return sum(self.bounds.values())

  @property
  def bound_by(self) -> str:
    """Name of the largest bound."""
    return max(self.bounds, key=self.bounds.get)


def of(cost: Cost, topology: Topology, kernel_flops: float = 0.0) -> Roofline:
  """Bounds of a program on one device of a slice.

  Args:
    cost: of one device.
    kernel_flops: of one device in opaque kernels, which `cost` lacks.
  """
  chip, share = topology.chip, topology.devices_per_chip
  wire = sum(c.wire_bytes * times for c, times in cost.collectives.items())
  links = chip.links_in(topology.dims) * chip.link_bandwidth
  return Roofline(
    compute_secs=(cost.flops + kernel_flops) * share / chip.flops,
    hbm_secs=cost.hbm_bytes * share / chip.hbm_bandwidth,
    # A single chip has no links.
    interconnect_secs=wire * share / links if links else 0.0,
  )


def utilisation(model_flops: float, secs: float, topology: Topology) -> float:
  """MFU: a step's model FLOPs over the slice's peak FLOPs in the same time.

  Source: Chowdhery et al. 2022 (arXiv:2204.02311) appendix B.
  """
  return model_flops / (secs * topology.num_chips * topology.chip.flops)


def forecast(model_flops: float, mfu: float, topology: Topology) -> float:
  """Seconds of a step at an expected MFU; see `utilisation`."""
  return model_flops / (mfu * topology.num_chips * topology.chip.flops)


def expense(
  num_steps: int, secs: float, num_chips: int, price: float | None
) -> Mapping:
  """Days, chip-hours and USD of a run at `price` per chip-hour (None: no USD)."""
  hours = num_steps * secs / 3600.0
  return {
    "num_steps": num_steps,
    "days": hours / 24.0,
    "chip_hours": hours * num_chips,
    "usd": None if price is None else hours * num_chips * price,
  }
