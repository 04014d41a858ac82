"""The codes of a data set's pictures on disk, so that an autoencoder runs once.

A folder holds train.array_record, validation.array_record and latents.json: of which
autoencoder (SHA-256 of its weights) the codes are. A record is the moments of the
posterior, float16 [F, h, w, 2 Z] (mean, then std; F = 2 where the mirrored picture has
been encoded as well), and the caption.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import grain
import numpy as np
from array_record.python import array_record_module
from flax import serialization

from gen_jax import files
from gen_jax.data import sources
from gen_jax.types import InputError

NAME = "latents.json"


def write(path: pathlib.Path, examples: Iterable[tuple[np.ndarray, str]]) -> int:
  """Writes one split, whole or not at all; returns how many examples it has.

  Args:
    examples: codes [F, h, w, 2 Z] and caption.
  """
  partial = path.with_name(f"{path.name}.partial")
  writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
  num = 0
  try:
    for codes, caption in examples:
      record = {"codes": codes.astype(np.float16), "caption": caption}
      writer.write(serialization.msgpack_serialize(record))
      num += 1
  except BaseException:
    writer.close()
    with contextlib.suppress(OSError):
      partial.unlink()
    raise
  writer.close()
  partial.replace(path)
  return num


def join(folder: pathlib.Path, split: str) -> None:
  """Makes one file of the pieces SPLIT.00000.array_record, ... that `write` wrote."""
  pieces = sorted(folder.glob(f"{split}.0*.array_record"))
  examples = (
    (record["codes"], record["caption"])
    for piece in pieces
    for record in map(
      serialization.msgpack_restore, grain.sources.ArrayRecordDataSource([str(piece)])
    )
  )
  write(folder / f"{split}.array_record", examples)


def read_statistics(folder: pathlib.Path) -> dict[str, Any] | None:
  """What `gen-jax encode` has measured of an autoencoder; None if it has not."""
  path = folder / NAME
  if not path.exists():
    return None
  try:
    found = files.read_sealed(path)
    mean, std = (np.asarray(found[key], np.float32) for key in ("mean", "std"))
    if mean.shape != std.shape or mean.ndim != 1 or not (std > 0).all():
      raise ValueError("mean and std must be one number per channel, std above 0")
  except (ValueError, KeyError, TypeError, InputError) as error:
    raise InputError(
      f"{path} is damaged ({error}); write it anew with gen-jax encode"
    ) from None
  return {**found, "mean": mean, "std": std}


@dataclasses.dataclass(frozen=True)
class Latents:
  """A folder that `gen-jax encode --to` has written."""

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
        f"{self.directory!r} is no latent cache: it has no {NAME}; make one with"
        " gen-jax encode --workdir AUTOENCODER --to DIR"
      )
    return found

  def codes(self, split: str) -> Sequence[dict[str, Any]]:
    """{codes: float16 [F, h, w, 2 Z], caption} of a split."""
    self.statistics()
    path = self.folder / f"{split}.array_record"
    if not path.exists():
      raise InputError(f"the latent cache {self.directory!r} has no {path.name}")
    source = grain.sources.ArrayRecordDataSource([str(path)])
    return sources.Mapped(source, serialization.msgpack_restore)
