"""GPUs and TPU chips of this machine, shared among processes by their environment.

No driver is asked: a process that did so would hold the chips itself.
"""

import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gen_jax.types import InputError

_MEMORY = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
_USUAL = 0.75  # the share of a GPU's memory that a process of JAX takes
_NONE = ("", "-1", "NoDevFiles")  # of CUDA_VISIBLE_DEVICES


class Chips(NamedTuple):
  """Chips that JAX would use here.

  Attributes:
    kind: "gpu" or "tpu".
    names: of each, as its environment variable has them; () without any.
  """

  kind: str
  names: tuple[str, ...]


def here(environment: Mapping[str, str] = os.environ) -> Chips:
  """The chips of this machine that `environment` lets a process see."""
  if environment.get("JAX_PLATFORMS", "").startswith("cpu"):
    return Chips("gpu", ())
  visible = environment.get("TPU_VISIBLE_CHIPS") or environment.get(
    "TPU_VISIBLE_DEVICES"
  )
  from jax._src import hardware_utils  # not while imports are put off: `system.lazy`

  num, _ = hardware_utils.num_available_tpu_chips_and_device_id()
  if num:
    return Chips("tpu", _names(visible, num))
  files = pathlib.Path("/dev").glob("nvidia*")
  num = sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in files)
  return Chips("gpu", _names(environment.get("CUDA_VISIBLE_DEVICES"), num))


def _names(visible: str | None, num: int) -> tuple[str, ...]:
  if visible is None:
    return tuple(map(str, range(num)))
  return () if visible in _NONE else tuple(visible.split(","))


def environments(chips: Chips, jobs: int) -> list[dict[str, str]]:
  """Variables that give each of `jobs` processes its share of the chips.

  One process gets all chips. Several GPUs are dealt out; if there are fewer than jobs,
  jobs share GPUs and their memory. A process of several gets one TPU chip.

  >>> environments(Chips("gpu", ("0", "1")), 2)
  [{'CUDA_VISIBLE_DEVICES': '0'}, {'CUDA_VISIBLE_DEVICES': '1'}]

  Raises:
    InputError: more jobs than TPU chips, which processes cannot share.
  """
  names = chips.names
  if jobs == 1 or not names:
    return [{} for _ in range(jobs)]
  if chips.kind == "tpu":
    if jobs > len(names):
      raise InputError(
        f"--jobs {jobs} must be at most {len(names)}, the TPU chips of this machine:"
        " processes cannot share one"
      )
    return [_one_tpu(name, i) for i, name in enumerate(names[:jobs])]
  return [_gpus(names, i, jobs) for i in range(jobs)]


def _gpus(names: Sequence[str], i: int, jobs: int) -> dict[str, str]:
  num = len(names)
  mine = names[i::jobs] or (names[i % num],)
  found = {"CUDA_VISIBLE_DEVICES": ",".join(mine)}
  if jobs > num and not any(name in os.environ for name in _MEMORY):
    found[_MEMORY[0]] = f"{_USUAL / -(-jobs // num):.3f}"
  return found


def _one_tpu(name: str, i: int) -> dict[str, str]:
  """As libtpu asks of processes that do not know each other."""
  port = 8476 + i
  return {
    "TPU_VISIBLE_CHIPS": name,
    "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
    "TPU_PROCESS_BOUNDS": "1,1,1",
    "TPU_PROCESS_ADDRESSES": f"localhost:{port}",
    "TPU_PROCESS_PORT": str(port),
    "CLOUD_TPU_TASK_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  }
