"""TFDS data sets, by directory or by name, without running code that they name.

TFDS imports any module that a features.json names as a feature's class, so the file is
checked against TFDS's own features first.
"""

import contextlib
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gen_jax import errors
from gen_jax.errors import InputError, first_line, unknown
from gen_jax.system import copies, files

_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")


def home(data_dir: str | None) -> str | None:
  """The folder of prepared data sets; None is TFDS's default."""
  return data_dir and str(copies.here(data_dir, "data.source.data_dir"))


def builder(dataset: str, data_dir: str | None):
  """The builder of a data set, by directory or name; prepares it if needed.

  Raises:
    InputError: no such data set, or its features.json names a class not of TFDS.
  """
  with errors.extra("data"):
    import tensorflow_datasets as tfds  # imported here: most runs do not need it

  directory = copies.here(dataset, "data.source.dataset")
  data_dir = home(data_dir)
  is_there = directory.is_dir()
  names = "features.json" if is_there else "**/features.json"
  for folder in [directory] if is_there else _homes(dataset, data_dir):
    for path in sorted(folder.glob(names)):
      _check_features(path)
  try:
    if is_there:
      return tfds.builder_from_directory(str(directory))
    how = {"data_dir": data_dir, "try_gcs": False, "file_format": "array_record"}
    return _prepared(tfds.builder(dataset, **how))
  except Exception as error:  # TFDS raises many kinds
    raise InputError(
      f"cannot open TFDS data set {dataset!r}: {first_line(error)}; give a prepared"
      " directory (with dataset_info.json) or a name that TFDS knows"
    ) from None


def _prepared(found: Any) -> Any:
  with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
    found.download_and_prepare()
  return found


def own(make: Callable, data_dir: str | None, **how: Any) -> Any:
  """A builder of a data set of ours, prepared on first use."""
  how |= {"data_dir": home(data_dir), "file_format": "array_record"}
  try:
    found = _prepared(make(**how))
    found.info.splits["train"]  # none if dataset_info.json is lost
    return found
  except (InputError, OSError):
    raise
  except Exception as error:
    raise InputError(
      f"the prepared data set {make.name} is damaged ({first_line(error)}); remove"
      f" {data_dir or '~/tensorflow_datasets'}/{make.name}, and it is made again"
    ) from None


def split_of(dataset: str, data_dir: str | None, split: str) -> Sequence[Any]:
  """One split of a data set, with random access."""
  found = builder(dataset, data_dir)
  if re.split(r"[\[+]", split)[0] not in found.info.splits:
    raise unknown(f"split (of {dataset})", split, found.info.splits)
  try:
    return found.as_data_source(split)
  except Exception as error:
    raise InputError(
      f"cannot read split {split!r} of TFDS data set {dataset!r}:"
      f" {first_line(error)}; there are: {', '.join(found.info.splits)}, and the"
      " files must be array_record"
    ) from None


def _homes(dataset: str, data_dir: str | None) -> list[pathlib.Path]:
  """Folders where TFDS looks for a data set of this name before its own code."""
  from tensorflow_datasets.core.utils import file_utils

  name = re.split(r"[/:]", dataset)[0]
  folders = file_utils.list_data_dirs(given_data_dir=data_dir)
  return [pathlib.Path(folder).expanduser() / name for folder in folders]


def _check_features(path: pathlib.Path) -> None:
  """Raises InputError if a features.json names a class that is not of TFDS."""
  import tensorflow_datasets as tfds

  own = {
    f"{kind.__module__}.{kind.__name__}"
    for kind in vars(tfds.features).values()
    if isinstance(kind, type) and issubclass(kind, tfds.features.FeatureConnector)
  }
  own.add("tensorflow_datasets.core.features.feature.Tensor")  # its old path
  for name in _classes(files.read_json(path)):
    if name not in own:
      raise InputError(
        f"{path} names {name!r}, which is not a feature of TFDS and would be imported;"
        " prepare the data set with TFDS's own features"
      )


def _classes(features: dict[str, Any]) -> Iterator[str]:
  """All class names in a features.json, at any depth, also in nested JSON text."""
  todo: list[Any] = [features]
  while todo:
    value = todo.pop()
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
      try:
        todo.append(json.loads(value))
      except (ValueError, RecursionError):  # then TFDS does not read it either
        continue
    elif isinstance(value, list):
      todo.extend(value)
    elif isinstance(value, dict):
      named = (value[key] for key in _CLASS_KEYS if key in value)
      yield from (name for name in named if isinstance(name, str))
      todo.extend(value.values())
