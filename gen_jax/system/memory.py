"""Memory that programs and arrays need, and memory available, checked before a run."""

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
  """Bytes that one device needs to run a compiled program, arguments included.

  On TPUs the compiler's peak. Elsewhere the sum of arguments, temporaries (allocated at
  once) and results that do not reuse arguments: the CPU compiler's peak has only the
  arguments.
  """
  found = compiled.memory_analysis()
  device = next(iter(jax.tree.leaves(compiled.output_shardings)[0].device_set))
  if device.platform == "tpu":
    return found.peak_memory_in_bytes
  results = found.output_size_in_bytes - found.alias_size_in_bytes
  return found.argument_size_in_bytes + found.temp_size_in_bytes + results


def available(sharding: jax.sharding.Sharding) -> float:
  """Bytes available to each local device of a sharding; inf if unknown.

  CPU devices share the host's available memory.
  """
  devices = sharding.addressable_devices
  if any(device.platform == "cpu" for device in devices):
    return _host() / len(devices)
  stats = [device.memory_stats() or {} for device in devices]
  return min((s.get("bytes_limit", math.inf) for s in stats), default=math.inf)


def _host() -> float:
  """Bytes still available to this process, in the machine and its container."""
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
  """Refuses arrays that do not fit the local devices.

  Args:
    what: name of the arrays, for the message.
    abstract: arrays with shardings.

  Raises:
    InputError: says how much they need, and how much is available.
  """
  leaves = jax.tree.leaves(abstract)
  if leaves:
    needed, there = bytes_per_device(leaves), available(leaves[0].sharding)
    if needed > there:
      raise InputError(
        f"out of memory: {what} would take {needed / GIB:.2f} GiB of each device, and"
        f" {there / GIB:.2f} GiB are left here; use a smaller model, a larger machine"
        " or more devices (mesh.fsdp)"
      )
