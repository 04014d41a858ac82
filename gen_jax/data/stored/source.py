"""The source of images in a store, `data.source=image_store`."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from gen_jax.data import image_files, sources
from gen_jax.data.stored import records
from gen_jax.data.tokens import store
from gen_jax.errors import InputError
from gen_jax.system import files

_MOST = 64  # threads that decode


@dataclasses.dataclass(frozen=True)
class ImageStore:
  """A folder of `gen-jax pack`, on a disk or in a bucket; images are read by number."""

  path: str

  @functools.cached_property
  def _home(self) -> pathlib.Path:
    return files.path(self.path, "data.source.path")

  @functools.cached_property
  def _manifest(self) -> dict[str, Any]:
    store.check_finished(self._home)
    if not (self._home / store.MANIFEST).exists():
      raise InputError(f"{self.path!r} is no image store: make one with gen-jax pack")
    return store.read_manifest(self._home, "images")

  def _records(self, split: str) -> records.Records:
    return records.Records(self._home, self._manifest, split)

  def examples(self, split: str) -> Sequence[sources.Example]:
    def decoded(record):
      where = f"an image of {self.path}"
      return {**record, "image": image_files.decoded(record["image"], where)}

    return sources.Mapped(self._records(split), decoded)

  def captions(self, split: str) -> Sequence[str]:
    """The captions alone: no image is decoded."""
    return sources.Mapped(self._records(split), lambda record: record["caption"])

  def readers(self) -> int:
    """How many images are read and decoded at once: one a core, more of a bucket."""
    cores = min(max(os.cpu_count() or 1, 2), _MOST)
    return cores if files.is_local(self._home) else records.REQUESTS

  def class_names(self) -> tuple[str, ...]:
    """Names of the labels.

    Raises:
      InputError: there are none.
    """
    names = self._manifest.get("class_names")
    if not names:
      raise InputError(
        f"the image store {self.path!r} has no labels: pack it with them"
      )
    return tuple(names)
