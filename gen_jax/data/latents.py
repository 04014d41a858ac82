"""Latent cache: a data set's codes on disk, so that the autoencoder runs once.

A folder holds the shards of `stored.records` and latents.json, with the SHA-256 of the
autoencoder's weights, of each shard and of itself. Sizes are checked on opening, each
record when it is read, hashes by `gen-jax inspect`. A record is the posterior's
moments, float16 [F, h, w, 2 Z] (mean, then std; F = 2 if the mirrored image is encoded
too), the caption, and the label where the data set knows classes, whose names
latents.json has.

Caches of older versions have train.array_record and validation.array_record, whose
hashes are verified on opening, at about 2 GB/s.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gen_jax.data import sources
from gen_jax.data.stored import records
from gen_jax.data.tokens import indexed
from gen_jax.errors import InputError, one_line
from gen_jax.system import copies, files

NAME = "latents.json"
_FIELDS = {"sha256", "step", "weights", "data", "mean", "std", "num_images", "files"}
_FIELDS |= {"class_names", "dtype", "splits"}


# Codes float16 or float32 [F, h, w, 2 Z], and 'caption' and 'label' as in a source.
Code = tuple[np.ndarray, dict[str, Any]]


def write(prefix: pathlib.Path, examples: Iterable[Code]) -> dict[str, Any]:
  """Writes a shard, whole or not at all; returns its entry of latents.json.

  Args:
    prefix: path of the shard without its suffixes.
    examples: see `Code`.
  """
  found = ({**about, "codes": codes.astype(np.float16)} for codes, about in examples)
  written = indexed.write(prefix, records.chunks(found))
  return {"name": prefix.name, **written._asdict()}


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


def _array_records(path: pathlib.Path) -> Sequence[dict[str, Any]]:
  """The records of a cache of an older version; InputError if damaged."""
  import grain
  from flax import serialization

  try:
    source = grain.sources.ArrayRecordDataSource([str(path)])
    num = len(source)
  except Exception as error:  # its library raises many kinds
    raise _damaged(path, one_line(error)) from None

  def read(i: int) -> dict[str, Any]:
    try:
      return serialization.msgpack_restore(source[i])
    except Exception as error:
      raise _damaged(path, one_line(error)) from None

  return sources.Mapped(range(num), read)


def _code(path: pathlib.Path, found: dict[str, Any]) -> dict[str, Any]:
  """A record that is as it should be."""
  try:
    codes, caption = found["codes"], files.text(found["caption"], str(path))
    if codes.dtype != np.float16 or codes.ndim != 4:
      raise ValueError(f"codes are {codes.dtype} {codes.shape}")
  except Exception as error:
    raise _damaged(path, one_line(error)) from None
  label = {"label": int(found["label"])} if "label" in found else {}
  return {"codes": codes, "caption": caption, **label}


@dataclasses.dataclass(frozen=True)
class Latents:
  """A folder written by `gen-jax encode --to`, on a disk or in a bucket."""

  directory: str

  @property
  def folder(self) -> pathlib.Path:
    return files.path(self.directory, "data.source.directory")

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

  def _records(self, split: str) -> Sequence[dict[str, Any]]:
    statistics = self.statistics()
    if "splits" in statistics:
      return records.Records(self.folder, statistics, split)
    path = copies.fetched(self.folder) / f"{split}.array_record"
    if not path.exists():
      raise InputError(f"the latent cache {self.directory!r} has no {path.name}")
    if "files" in statistics:
      stamp = files.stamps([path])
      if _sha256(path, stamp) != statistics["files"].get(path.name):
        raise _damaged(path, "it is not what was written")
    return _array_records(path)

  def codes(self, split: str) -> Sequence[dict[str, Any]]:
    """{codes: float16 [F, h, w, 2 Z], caption, perhaps label} of a split."""
    return sources.Mapped(self._records(split), functools.partial(_code, self.folder))

  def readers(self) -> int:
    """How many codes are read at once, of a bucket; of a disk whole batches are."""
    return 0 if files.is_local(self.folder) else records.REQUESTS
