"""Latent cache: a data set's codes on disk, so that the autoencoder runs once.

A folder holds train.array_record, validation.array_record and latents.json, with the
SHA-256 of the autoencoder's weights, of both files and of itself. Hashes are verified
on opening, at about 2 GB/s. A record is the posterior's moments, float16
[F, h, w, 2 Z] (mean, then std; F = 2 if the mirrored image is encoded too), the
caption, and the label where the data set knows classes, whose names latents.json has.
"""

import contextlib
import dataclasses
import errno
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from array_record.python import array_record_module
from flax import serialization

from gen_jax.data import sources
from gen_jax.system import copies, files
from gen_jax.types import InputError, one_line

NAME = "latents.json"
_FIELDS = {"sha256", "step", "weights", "data", "mean", "std", "num_images", "files"}
_FIELDS |= {"class_names"}


# Codes float16 or float32 [F, h, w, 2 Z], and 'caption' and 'label' as in a source.
Code = tuple[np.ndarray, dict[str, Any]]


def write(path: pathlib.Path, examples: Iterable[Code]) -> int:
  """Writes one split, whole or not at all; returns its number of examples.

  Args:
    examples: see `Code`.
  """
  num = 0
  with files.replacing(path) as partial, _writing(partial) as write_record:
    for codes, about in examples:
      record = {**about, "codes": codes.astype(np.float16)}
      write_record(serialization.msgpack_serialize(record))
      num += 1
  return num


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[Callable[[bytes], None]]:
  """Yields a function that writes a record."""
  with _os_errors(path):
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")

  def write_record(record: bytes) -> None:
    with _os_errors(path):
      writer.write(record)

  try:
    yield write_record
  finally:
    with _os_errors(path):
      writer.close()


@contextlib.contextmanager
def _os_errors(path: pathlib.Path) -> Iterator[None]:
  """Turns riegeli's RuntimeError for file-system errors into OSError."""
  try:
    yield
  except RuntimeError as error:
    is_full = os.strerror(errno.ENOSPC) in str(error)
    code = errno.ENOSPC if is_full else errno.EIO
    raise OSError(code, os.strerror(code), str(path)) from error


def join(folder: pathlib.Path, split: str) -> None:
  """Joins the files SPLIT.00000.array_record, ... of `write` into one."""
  pieces = sorted(folder.glob(f"{split}.0*.array_record"))
  records = (record for piece in pieces for record in _records(piece))
  examples = ((record.pop("codes"), record) for record in records)
  write(folder / f"{split}.array_record", examples)


def read_statistics(folder: pathlib.Path) -> dict[str, Any] | None:
  """Statistics that `gen-jax encode` measured of an autoencoder; None without."""
  path = folder / NAME
  if not path.exists():
    return None
  try:
    found = files.read_sealed(path)
    if unread := found.keys() - _FIELDS:
      raise ValueError(f"unknown {min(unread)!r}")
    with np.errstate(over="ignore"):
      mean, std = (np.asarray(found[key], np.float32) for key in ("mean", "std"))
    if mean.shape != std.shape or mean.ndim != 1 or not (std > 0).all():
      raise ValueError("mean and std must be one number per channel, std above 0")
    if not np.isfinite([mean, std]).all():
      raise ValueError("mean and std must be finite")
  except (ValueError, KeyError, TypeError, OverflowError) as error:
    raise InputError(
      f"{path} is damaged ({error}); write it again with gen-jax encode"
    ) from None
  return {**found, "mean": mean, "std": std}


@functools.lru_cache(maxsize=8)
def _sha256(path: pathlib.Path, stamp: str) -> str:
  """Cached: a run opens a data set several times."""
  del stamp
  return files.sha256(path)


def _damaged(path: pathlib.Path, reason: str) -> InputError:
  return InputError(
    f"the latent cache {path} is damaged ({reason:.200}); delete its folder and make it"
    " again with gen-jax encode"
  )


def _records(path: pathlib.Path) -> Sequence[dict[str, Any]]:
  """The records that `write` wrote; InputError if damaged."""
  try:
    source = grain.sources.ArrayRecordDataSource([str(path)])
    num = len(source)
  except Exception as error:  # its library raises many kinds
    raise _damaged(path, one_line(error)) from None

  def read(i: int) -> dict[str, Any]:
    try:
      found = serialization.msgpack_restore(source[i])
      codes, caption = found["codes"], files.text(found["caption"], str(path))
      if codes.dtype != np.float16 or codes.ndim != 4:
        raise ValueError(f"codes are {codes.dtype} {codes.shape}")
    except Exception as error:
      raise _damaged(path, one_line(error)) from None
    label = {"label": int(found["label"])} if "label" in found else {}
    return {"codes": codes, "caption": caption, **label}

  return sources.Mapped(range(num), read)


@dataclasses.dataclass(frozen=True)
class Latents:
  """A folder written by `gen-jax encode --to`."""

  directory: str

  @property
  def folder(self) -> pathlib.Path:
    return copies.here(self.directory, "data.source.directory")

  def statistics(self) -> dict[str, Any]:
    """latents.json of the folder.

    Raises:
      InputError: there is none, or it is damaged.
    """
    found = read_statistics(self.folder)
    if found is None:
      raise InputError(
        f"{self.directory!r} is not a latent cache: it has no {NAME}; make one with"
        " gen-jax encode --workdir AUTOENCODER --to DIR"
      )
    return found

  def class_names(self) -> tuple[str, ...]:
    """Names of the labels.

    Raises:
      InputError: there are none.
    """
    names = self.statistics().get("class_names")
    if not names:
      raise InputError(
        f"the latent cache {self.directory!r} has no labels: make it again with gen-jax"
        " encode, of a data set that knows classes"
      )
    return tuple(names)

  def codes(self, split: str) -> Sequence[dict[str, Any]]:
    """{codes: float16 [F, h, w, 2 Z], caption, perhaps label} of a split."""
    statistics = self.statistics()
    path = self.folder / f"{split}.array_record"
    if not path.exists():
      raise InputError(f"the latent cache {self.directory!r} has no {path.name}")
    if "files" in statistics:  # caches of older versions have none
      stamp = files.stamps([path])
      if _sha256(path, stamp) != statistics["files"].get(path.name):
        raise _damaged(path, "it is not what was written")
    return _records(path)
