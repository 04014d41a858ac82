"""What a run has cost so far: chip-hours of all its starts, and their list price.

WORKDIR/hours.json has an entry for each start: when it began, when it was last at work,
the number of its chips (of runs that share a chip, a part of it each) and their kind.
Work that a restart did again counts, as the provider counts it; waiting for machines
does not.
"""

import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax

from gen_jax import ranges
from gen_jax.cost import chips
from gen_jax.runs import workdir
from gen_jax.system import files
from gen_jax.types import InputError

NAME = "hours.json"
_EVERY_SECS = 30.0
_ENTRY = {"began": float, "until": float, "chips": float, "kind": str}


def starts(directory: pathlib.Path) -> list[dict[str, Any]]:
  """The entries of a run, of earlier versions none; InputError if damaged."""
  path = directory / NAME
  if not path.exists():
    return []
  found = files.read_sealed(path).get("starts")
  if not isinstance(found, list) or not all(isinstance(s, dict) for s in found):
    raise InputError(f"{path} is damaged: it has no starts; restore it, or delete it")
  return [
    {
      name: ranges.typed(files.field(start, name, str(path)), kind, f"{path}: {name}")
      for name, kind in _ENTRY.items()
    }
    for start in found
  ]


class Bill:
  """Notes how long this start has been at work: a writer of metrics, see `writers`."""

  def __init__(
    self,
    directory: pathlib.Path,
    began: float,
    devices: Sequence[jax.Device],
    share: float = 1.0,
  ):
    """Args:
    began: seconds since 1970.
    devices: of all processes.
    share: of the devices; less than 1 if other runs use them at the same time.
    """
    self._directory, self._before = directory, starts(directory)
    self._start = {
      "began": began,
      "until": began,
      "chips": chips.count(devices) * share,
      "kind": devices[0].device_kind,
    }
    self._due = 0.0

  def write(self, step: int, values: dict[str, float]) -> None:
    """Notes that it is still at work, every half minute."""
    del step, values
    if time.monotonic() >= self._due:
      self._due = time.monotonic() + _EVERY_SECS
      self.close()

  def close(self) -> None:
    """Notes when it ended."""
    self._start["until"] = time.time()
    noted = {"starts": [*self._before, self._start]}
    workdir.write_sealed(self._directory / NAME, noted)


def so_far(directory: pathlib.Path) -> dict[str, Any]:
  """starts, chip_hours, and usd at list prices (None: not all chips have one)."""
  found = starts(directory)
  hours = [
    max(start["until"] - start["began"], 0.0) / 3600.0 * start["chips"]
    for start in found
  ]
  prices = [chips.price(start["kind"]) for start in found]
  usd = None
  if None not in prices:
    usd = sum(h * p for h, p in zip(hours, prices, strict=True))
  return {"starts": len(found), "chip_hours": sum(hours), "usd": usd}


def line(directory: pathlib.Path) -> str | None:
  """`so_far` in words; None where no start was on chips that have a price."""
  found = so_far(directory)
  if not found["starts"] or found["usd"] is None:
    return None
  return (
    f"so far: {found['chip_hours']:,.2f} chip-hours in {found['starts']} starts,"
    f" {found['usd']:,.2f} USD at list prices of {chips.PRICES_OF}"
  )
