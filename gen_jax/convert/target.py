"""Where an export goes: whole or not at all, and what is said of it."""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from gen_jax.system import files

NOT_FOREIGN = shutil.ignore_patterns(files.HASHES)
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@contextlib.contextmanager
def whole(target: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields where to write a folder or file; it is named `target` when all is there."""
  partial = target.with_name(f"{target.name}.partial")
  target.parent.mkdir(parents=True, exist_ok=True)
  _remove(partial)
  try:
    yield partial
    partial.rename(target)
  except BaseException:
    _remove(partial)
    raise


def _remove(path: pathlib.Path) -> None:
  shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(True)


def told(args, weights, name: str, params: Any) -> dict[str, Any]:
  """Says what was written, and returns it as the command's result."""
  print(
    f"{args.to}: {name}, {args.dtype}, the {weights.name} weights of step"
    f" {weights.step}"
  )
  return {
    "path": str(args.to),
    "architecture": name.replace(" ", ""),
    "params": params,
    "step": weights.step,
    "weights": weights.name,
  }
