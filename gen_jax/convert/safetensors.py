"""Safetensors: a folder of tensors, read where they lie and written one by one.

A file is the length of its header (uint64, little endian), the header (JSON: {name:
{dtype, shape, data_offsets}}), and the bytes of the tensors in C order. A model in
several files has an index, {'weight_map': {tensor: file}}. Nothing is ever executed.

Source: the format's own description, github.com/huggingface/safetensors.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from gen_jax.types import InputError

STEM = "model"  # of file names; diffusers has another one
DTYPES = {
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}
_MAX_HEADER = 100_000_000  # bytes; the format's own limit


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where a tensor lies on disk.

  Attributes:
    shape: of the tensor.
    dtype: one of DTYPES' keys, or another name that is only good for messages.
    file: that holds it.
    offset: of its first byte in the file.
  """

  shape: tuple[int, ...]
  dtype: str
  file: pathlib.Path
  offset: int

  def view(self) -> np.ndarray:
    """The tensor, mapped into memory: only what is touched is read."""
    return np.memmap(
      self.file, DTYPES[self.dtype], mode="r", offset=self.offset, shape=self.shape
    )


def _damaged(file: pathlib.Path, reason: str) -> InputError:
  return InputError(f"{file} is truncated or corrupted: {reason}; fetch the file again")


def _head(file: pathlib.Path) -> bytes:
  try:
    size = file.stat().st_size
    with file.open("rb") as stream:
      length = int.from_bytes(stream.read(8), "little")
      if size < 8 or length > min(_MAX_HEADER, size - 8):
        raise _damaged(file, f"its {size} bytes cannot hold its header of {length}")
      return stream.read(length)
  except OSError as error:
    raise InputError(f"cannot read {file}: {error.strerror}") from None


def read_metadata(file: pathlib.Path) -> dict[str, str]:
  """What a file says of itself beside its tensors; see `read_header`."""
  return json.loads(_head(file)).get("__metadata__", {})


def read_header(file: pathlib.Path) -> dict[str, Tensor]:
  """The tensors of one file.

  Raises:
    InputError: damaged: every byte of the file must belong to the header or to
      exactly one tensor.
  """
  size, head = file.stat().st_size, _head(file)
  length = len(head)
  try:
    entries = json.loads(head)
    entries.pop("__metadata__", None)
    tensors, spans = {}, []
    for name, entry in entries.items():
      shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
      if not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
        raise ValueError(f"{name} has shape {shape} at {start}:{end}")
      dtype = entry["dtype"]
      if dtype in DTYPES and end - start != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"{name} is {dtype} {shape} in {end - start} bytes")
      tensors[name] = Tensor(shape, dtype, file, 8 + length + start)
      spans.append((start, end))
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise _damaged(file, f"bad header ({error})") from None
  at = 0
  for start, end in sorted(spans):
    if start != at or end < start:
      raise _damaged(file, f"tensors leave a gap or overlap at byte {at}")
    at = end
  if 8 + length + at != size:
    raise _damaged(file, f"it has {size} bytes, its header wants {8 + length + at}")
  return tensors


def _index(file: pathlib.Path) -> Mapping[str, str]:
  index = read_json(file)
  names = index.get("weight_map") if isinstance(index, dict) else None
  if not isinstance(names, dict) or not names:
    raise InputError(f"{file} is damaged: it has no weight_map; fetch it again")
  for name in names.values():
    if not isinstance(name, str) or pathlib.PurePath(name).name != name:
      raise InputError(f"{file} names {name!r}; files beside it are needed")
  return names


def read_json(file: pathlib.Path) -> Any:
  """Raises InputError for what is missing or no JSON."""
  try:
    return json.loads(file.read_bytes())
  except OSError as error:
    raise InputError(f"cannot read {file}: {error.strerror}") from None
  except (ValueError, RecursionError) as error:
    raise InputError(f"{file} is damaged ({error}); fetch the file again") from None


def open_folder(folder: pathlib.Path, stem: str = STEM) -> dict[str, Tensor]:
  """All tensors of a model folder, of one file or of many with their index.

  Args:
    stem: of the file names.

  Raises:
    InputError: no weights, a missing or damaged file, or files that contradict the
      index.
  """
  single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
  if (folder / index).exists():
    where = _index(folder / index)
    files = sorted(set(where.values()))
    if missing := [name for name in files if not (folder / name).is_file()]:
      raise InputError(
        f"{folder} lacks {len(missing)} of {len(files)} weight files:"
        f" {', '.join(missing)}; fetch them"
      )
    found = {name: read_header(folder / name) for name in files}
    tensors = {n: t for name in files for n, t in found[name].items()}
    wrong = [n for n, name in where.items() if n not in found[name]]
    wrong += sorted(tensors.keys() - where.keys())
    if wrong or sum(map(len, found.values())) != len(tensors):
      listed = ", ".join(wrong[:4]) or "a tensor is in two files"
      raise InputError(f"{folder / index} contradicts the files it names: {listed}")
    return tensors
  if (folder / single).is_file():
    return read_header(folder / single)
  pickled = sorted(p.name for p in folder.glob("*.bin"))
  hint = f"; {pickled[0]} is a pickle, which is never opened" if pickled else ""
  raise InputError(f"{folder} has no weights: {single} or {index} is needed{hint}")


@dataclasses.dataclass(frozen=True)
class Planned:
  """A tensor to be written: its shape is known before its values are.

  Attributes:
    shape: of the tensor.
    make: returns its values, of any float dtype.
  """

  shape: tuple[int, ...]
  make: Callable[[], np.ndarray]


def _cast(values: np.ndarray, dtype: str, name: str) -> np.ndarray:
  with np.errstate(over="ignore"):
    cast = np.ascontiguousarray(values, DTYPES[dtype])
  lost = np.isfinite(values) & ~np.isfinite(cast)
  if lost.any():
    raise InputError(
      f"{name} has {values[lost][0]:g}, more than {DTYPES[dtype]} can hold; export as"
      " float32 or bfloat16"
    )
  return cast


def write_file(
  file: pathlib.Path, names: Iterable[str], plan: Mapping[str, Planned], dtype: str
) -> None:
  """Writes some of the planned tensors; see `write_folder`."""
  header, at = {"__metadata__": {"format": "pt"}}, 0
  for name in names:
    end = at + math.prod(plan[name].shape) * DTYPES[dtype].itemsize
    shape = list(plan[name].shape)
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
    at = end
  head = json.dumps(header, separators=(",", ":")).encode()
  head += b" " * (-len(head) % 8)
  with file.open("wb") as stream:
    stream.write(len(head).to_bytes(8, "little") + head)
    for name in names:
      values = np.asarray(plan[name].make())
      if values.shape != plan[name].shape:
        raise ValueError(f"{name} is {values.shape}, not {plan[name].shape}")
      _cast(values, dtype, name).tofile(stream)
    stream.flush()
    os.fsync(stream.fileno())


def write_folder(
  folder: pathlib.Path,
  plan: Mapping[str, Planned],
  dtype: str,
  max_bytes: int = 5_000_000_000,
  stem: str = STEM,
) -> None:
  """Writes STEM.safetensors, or several files and their index above max_bytes.

  Args:
    plan: {name: tensor}; one is in memory at a time.
    dtype: a key of DTYPES, for all tensors.

  Raises:
    InputError: a value that the dtype cannot hold.
  """
  groups, room = [[]], max_bytes
  sizes = {n: math.prod(t.shape) * DTYPES[dtype].itemsize for n, t in plan.items()}
  for name, size in sizes.items():
    if groups[-1] and size > room:
      groups.append([])
      room = max_bytes
    groups[-1].append(name)
    room -= size
  if len(groups) == 1:
    write_file(folder / f"{stem}.safetensors", groups[0], plan, dtype)
    return
  where = {}
  for i, names in enumerate(groups, 1):
    file = f"{stem}-{i:05d}-of-{len(groups):05d}.safetensors"
    write_file(folder / file, names, plan, dtype)
    where |= dict.fromkeys(names, file)
  index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
  path = folder / f"{stem}.safetensors.index.json"
  path.write_text(json.dumps(index, indent=2) + "\n")
