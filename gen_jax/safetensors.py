"""Safetensors: tensors memory-mapped from files, and written one by one.

A file is the length of its header (uint64, little endian), the header (JSON: {name:
{dtype, shape, data_offsets}}), and the bytes of the tensors in C order. A model in
several files has an index, {'weight_map': {tensor: file}}. No code is executed.

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

from gen_jax.system import files
from gen_jax.types import InputError

STEM = "model"  # of file names; diffusers has others
DTYPES = {  # of weights
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}
NUMBERS = {  # of single numbers, such as a LoRA's alpha
  **DTYPES,
  "F64": np.dtype(np.float64),
  **{f"I{8 * n}": np.dtype(f"i{n}") for n in (1, 2, 4, 8)},
  **{f"U{8 * n}": np.dtype(f"u{n}") for n in (1, 2, 4, 8)},
}
_MAX_HEADER = 100_000_000  # bytes; the format's own limit
_MAX_RANK = 16
# Other formats, by their first bytes.
_OTHERS = {
  b"version https://git-lfs": "a pointer of Git LFS; get the file: git lfs pull",
  b"GGUF": "GGUF, quantised for llama.cpp; take the model's safetensors",
  b"PK\x03\x04": "a pickle of PyTorch, which is never opened; take its safetensors",
  b"\x80\x02": "a pickle, which is never opened; take its safetensors",
  b"\x89HDF": "HDF5; take the model's safetensors",
  b"<": "a web page; fetch the file itself",
}
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where a tensor lies on disk.

  Attributes:
    shape: of the tensor.
    dtype: a key of DTYPES, or another name, for messages.
    file: that holds it.
    offset: of its first byte in the file.
  """

  shape: tuple[int, ...]
  dtype: str
  file: pathlib.Path
  offset: int

  def view(self) -> np.ndarray:
    """The tensor, memory-mapped: only accessed parts are read."""
    dtype = NUMBERS[self.dtype]
    if not math.prod(self.shape):
      return np.zeros(self.shape, dtype)
    return np.memmap(self.file, dtype, mode="r", offset=self.offset, shape=self.shape)


def _damaged(file: pathlib.Path, reason: str) -> InputError:
  return InputError(f"{file} is truncated or corrupted: {reason}; fetch the file again")


def name_other(file: pathlib.Path) -> str | None:
  """Describes a file of another known format by its first bytes; else None.

  Raises:
    InputError: it cannot be read.
  """
  try:
    with file.open("rb") as stream:
      start = stream.read(32)
  except OSError as error:
    raise InputError(f"cannot read {file}: {error.strerror}") from None
  return next(
    (what for magic, what in _OTHERS.items() if start.startswith(magic)), None
  )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """A JSON object; ValueError for a duplicate name."""
  found = dict(pairs)
  if len(found) < len(pairs):
    raise ValueError("duplicate name")
  return found


def _head(file: pathlib.Path) -> tuple[dict[str, Any], int, int]:
  """The header as JSON, the offset of the tensors, and their size in bytes."""
  other = name_other(file)
  size = file.stat().st_size
  with file.open("rb") as stream:
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > min(_MAX_HEADER, size - 8):
      if other:  # checked here only: a valid header's length may look like a pickle
        raise InputError(f"{file} is {other}")
      raise _damaged(file, f"its {size} bytes cannot hold its header of {length}")
    content = stream.read(length)
  try:
    head = json.loads(content.decode(), object_pairs_hook=_once)
  except (ValueError, RecursionError, MemoryError) as error:
    raise _damaged(file, f"bad header ({error!s:.100})") from None
  if not isinstance(head, dict):
    raise _damaged(file, "bad header (no object)")
  return head, 8 + length, size - 8 - length


def _metadata(file: pathlib.Path, head: Mapping[str, Any]) -> dict[str, str]:
  found = head.get("__metadata__", {})
  if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
    raise _damaged(file, "bad header (__metadata__ must hold texts by name)")
  return found


def read_metadata(file: pathlib.Path) -> dict[str, str]:
  """The metadata of a file; see `read_header`."""
  return _metadata(file, _head(file)[0])


def _placed(entry: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
  """dtype, shape and offsets of a header's entry.

  Raises:
    ValueError: they are malformed, or contradict each other.
  """
  if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
    raise ValueError("is no dtype, shape and data_offsets")
  dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
  if not (
    isinstance(dtype, str) and isinstance(shape, list) and len(shape) <= _MAX_RANK
  ):
    raise ValueError(f"has dtype {dtype!r:.20} and shape {shape!r:.60}")
  numbers = [*shape, *span] if isinstance(span, list) and len(span) == 2 else [None]
  if not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
    raise ValueError(f"has shape {shape!r:.60} at {span!r:.60}")
  start, end = span
  if dtype in NUMBERS and end - start != math.prod(shape) * NUMBERS[dtype].itemsize:
    raise ValueError(f"is {dtype} {shape} in {end - start} bytes")
  return dtype, tuple(shape), (start, end)


def read_header(file: pathlib.Path) -> dict[str, Tensor]:
  """The tensors of one file; a shared one under each of its names.

  PyTorch's `save_model` writes a shared tensor once, and {omitted name: written name}
  into the metadata.

  Raises:
    InputError: damaged; every byte must belong to the header or to exactly one tensor.
  """
  head, begin, size = _head(file)
  shared, tensors, spans = _metadata(file, head), {}, []
  for name, entry in head.items():
    if name != "__metadata__":
      try:
        dtype, shape, span = _placed(entry)
      except ValueError as error:
        raise _damaged(file, f"bad header ({name:.60} {error})") from None
      tensors[name] = Tensor(shape, dtype, file, begin + span[0])
      spans.append(span)
  at = 0
  for start, end in sorted(spans):
    if start != at or end < start:
      raise _damaged(file, f"tensors leave a gap or overlap at byte {at}")
    at = end
  if at != size:
    raise _damaged(file, f"it has {begin + size} bytes, its header wants {begin + at}")
  others = {name: tensors[kept] for name, kept in shared.items() if kept in tensors}
  return {**others, **tensors}


def _index(file: pathlib.Path) -> Mapping[str, str]:
  names = files.read_json(file).get("weight_map")
  if not isinstance(names, dict) or not names:
    raise InputError(f"{file} is damaged: it has no weight_map; fetch it again")
  for name in names.values():
    if not isinstance(name, str) or pathlib.PurePath(name).name != name:
      raise InputError(f"{file} names {name!r:.60}; files next to it are needed")
  return names


def open_folder(folder: pathlib.Path, stem: str = STEM) -> dict[str, Tensor]:
  """All tensors of a model folder, from one file or several with an index.

  Args:
    stem: of the file names.

  Raises:
    InputError: no weights, a missing or damaged file, or files that contradict the
      index.
  """
  single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
  if (folder / index).exists():
    where = _index(folder / index)
    shards = sorted(set(where.values()))
    if missing := [name for name in shards if not (folder / name).is_file()]:
      raise InputError(
        f"{folder} lacks {len(missing)} of {len(shards)} weight files:"
        f" {', '.join(missing)}; fetch them"
      )
    found = {name: read_header(folder / name) for name in shards}
    tensors = {n: t for name in shards for n, t in found[name].items()}
    wrong = [n for n, name in where.items() if n not in found[name]]
    wrong += sorted(tensors.keys() - where.keys())
    if wrong or sum(map(len, found.values())) != len(tensors):
      listed = ", ".join(wrong[:4]) or "a tensor is in two files"
      raise InputError(f"{folder / index} contradicts the files it names: {listed}")
    return tensors
  if (folder / single).is_file():
    return read_header(folder / single)
  raise InputError(
    f"{folder} has no weights: {single} or {index} is needed{unopened(folder)}"
  )


def unopened(folder: pathlib.Path) -> str:
  """A hint about weights of other formats in a folder; empty without."""
  for file in sorted(folder.iterdir()) if folder.is_dir() else ():
    if file.suffix in PICKLES:
      return f"; {file.name} is a pickle, which is never opened"
    if file.suffix == ".gguf":
      return f"; {file.name} is {_OTHERS[b'GGUF']}"
  return ""


@dataclasses.dataclass(frozen=True)
class LazyTensor:
  """A tensor to write, whose values are made when they are written.

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
  file: pathlib.Path,
  names: Iterable[str],
  tensors: Mapping[str, LazyTensor],
  dtype: str,
) -> None:
  """Writes the named tensors into one file; see `write_folder`."""
  header: dict[str, Mapping[str, Any]] = {"__metadata__": {"format": "pt"}}
  at = 0
  for name in names:
    end = at + math.prod(tensors[name].shape) * DTYPES[dtype].itemsize
    shape = list(tensors[name].shape)
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
    at = end
  head = json.dumps(header, separators=(",", ":")).encode()
  head += b" " * (-len(head) % 8)
  with file.open("wb") as stream:
    stream.write(len(head).to_bytes(8, "little") + head)
    for name in names:
      values = np.asarray(tensors[name].make())
      if values.shape != tensors[name].shape:
        raise ValueError(f"{name} is {values.shape}, not {tensors[name].shape}")
      # `tofile` does not say why a disk refuses.
      stream.write(_cast(values, dtype, name).reshape(-1).view(np.uint8).data)
    stream.flush()
    os.fsync(stream.fileno())


def write_folder(
  folder: pathlib.Path,
  tensors: Mapping[str, LazyTensor],
  dtype: str,
  max_bytes: int = 5_000_000_000,
  stem: str = STEM,
) -> None:
  """Writes STEM.safetensors, or, above max_bytes, several files and an index.

  Args:
    tensors: by name; one is in memory at a time.
    dtype: a key of DTYPES, for all tensors.

  Raises:
    InputError: a value that overflows the dtype.
  """
  groups: list[list[str]] = [[]]
  room = max_bytes
  sizes = {n: math.prod(t.shape) * DTYPES[dtype].itemsize for n, t in tensors.items()}
  for name, size in sizes.items():
    if groups[-1] and size > room:
      groups.append([])
      room = max_bytes
    groups[-1].append(name)
    room -= size
  if len(groups) == 1:
    write_file(folder / f"{stem}.safetensors", groups[0], tensors, dtype)
    return
  where: dict[str, str] = {}
  for i, names in enumerate(groups, 1):
    file = f"{stem}-{i:05d}-of-{len(groups):05d}.safetensors"
    write_file(folder / file, names, tensors, dtype)
    where |= dict.fromkeys(names, file)
  index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
  files.write_json(folder / f"{stem}.safetensors.index.json", index)
