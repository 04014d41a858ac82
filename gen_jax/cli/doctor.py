"""`gen-jax doctor`: is this machine ready, and how fast is it?"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import time

import jax
import numpy as np

PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "tensorflow-datasets",
  "ml_collections",
  "tokenizers",
)


def add_arguments(parser) -> None:
  """See `gen-jax doctor --help`."""
  del parser


def _gemm_gflops(size: int = 1024, repeats: int = 10) -> float:
  """Median GFLOP/s of a float32 matrix product on one device."""
  x = jax.numpy.ones((size, size))
  multiply = jax.jit(lambda a: a @ a)
  multiply(x).block_until_ready()
  secs = []
  for _ in range(repeats):
    began = time.perf_counter()
    multiply(x).block_until_ready()
    secs.append(time.perf_counter() - began)
  return 2.0 * size**3 / float(np.median(secs)) / 1e9


def run(args) -> dict:
  """Prints versions, devices, memory, disk and a measured matrix speed."""
  del args
  versions = {}
  for name in PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = None
  pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  result = {
    "python": platform.python_version(),
    "versions": versions,
    "backend": jax.default_backend(),
    "devices": [str(device) for device in jax.devices()],
    "num_cpus": os.cpu_count(),
    "memory_gib": round(pages / 2**30, 1),
    "free_disk_gib": round(shutil.disk_usage(".").free / 2**30, 1),
    "tensorflow_imported": "tensorflow" in sys.modules,
    "torch_imported": "torch" in sys.modules,
    "gemm_float32_gflops": round(_gemm_gflops(), 1),
  }
  for name, value in result.items():
    if isinstance(value, dict):
      for package, version in value.items():
        print(f"{package:24} {version or 'MISSING: pip install ' + package}")
    else:
      print(f"{name:24} {value}")
  result["ok"] = all(versions.values())
  return result
