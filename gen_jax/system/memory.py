"""What programs and arrays need, and what is there: what cannot fit never begins."""

import contextlib
import math
import pathlib
import re

import jax
import numpy as np

from gen_jax.types import InputError, PyTree

GIB = 2.0**30
_MEMINFO = pathlib.Path("/proc/meminfo")
_CGROUP = pathlib.Path("/sys/fs/cgroup")


def bytes_per_device(abstract: PyTree) -> int:
  """Bytes of the shards that one device holds; arrays may be abstract."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * _itemsize(x.dtype)
    for x in jax.tree.leaves(abstract)
  )


def _itemsize(dtype) -> int:
  return dtype.itemsize if isinstance(dtype, np.dtype) else 8  # a random key


def peak(compiled: jax.stages.Compiled) -> int:
  """Bytes that one device needs to run a compiled program, its arguments included.

  TPUs' compiler says it. Elsewhere temporaries are allocated at once, with arguments
  and those results that are not written over arguments; the peak that the CPU's
  compiler gives is of its arguments alone.
  """
  found = compiled.memory_analysis()
  device = next(iter(jax.tree.leaves(compiled.output_shardings)[0].device_set))
  if device.platform == "tpu":
    return found.peak_memory_in_bytes
  results = found.output_size_in_bytes - found.alias_size_in_bytes
  return found.argument_size_in_bytes + found.temp_size_in_bytes + results


def available(sharding: jax.sharding.Sharding) -> float:
  """Bytes that each device of a sharding can have, here; inf where nobody knows.

  Devices of a CPU share what the host has left.
  """
  devices = sharding.addressable_devices
  if any(device.platform == "cpu" for device in devices):
    return _host() / len(devices)
  stats = [device.memory_stats() or {} for device in devices]
  return min((s.get("bytes_limit", math.inf) for s in stats), default=math.inf)


def _host() -> float:
  """Bytes that this process can still take: of the machine, and of its container."""
  left = [math.inf]
  with contextlib.suppress(OSError, ValueError):
    table = _MEMINFO.read_text()
    kibs = dict(re.findall(r"^(\w+):\s+(\d+) kB", table, re.MULTILINE))
    if "MemAvailable" in kibs:
      left.append(1024 * (int(kibs["MemAvailable"]) + int(kibs.get("SwapFree", 0))))
  for folder, limit, usage, cached in (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
  ):
    root = _CGROUP / folder
    with contextlib.suppress(OSError, ValueError):  # no such limit: 'max', or no file
      stats = dict(line.split() for line in (root / "memory.stat").open())
      used = int((root / usage).read_text()) - int(stats.get(cached, 0))
      left.append(int((root / limit).read_text()) - used)
  return float(max(min(left), 0))


def check(what: str, abstract: PyTree) -> None:
  """Refuses arrays that devices here cannot hold.

  Args:
    what: they are, for the message.
    abstract: arrays with shardings.

  Raises:
    InputError: says how much they need, and how much there is.
  """
  leaves = jax.tree.leaves(abstract)
  if leaves:
    needed, there = bytes_per_device(leaves), available(leaves[0].sharding)
    if needed > there:
      raise InputError(
        f"out of memory: {what} would take {needed / GIB:.2f} GiB of each device, and"
        f" {there / GIB:.2f} GiB are left here; take a smaller model, a larger machine,"
        " or more devices (mesh.fsdp)"
      )
