"""Where an export goes: whole or not at all, and what is said of it."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from gen_jax.system import copies, files

NOT_FOREIGN = (files.HASHES,)
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@contextlib.contextmanager
def whole(target: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields where to write a folder or file; it is named `target` when all is there.

  It is on a disk: what goes into a bucket is copied there.
  """
  if not files.is_local(target):
    with tempfile.TemporaryDirectory(prefix="gen-jax-") as scratch:
      yield pathlib.Path(scratch) / target.name
      copies.copy(pathlib.Path(scratch) / target.name, target)
    return
  partial = target.with_name(f"{target.name}.partial")
  target.parent.mkdir(parents=True, exist_ok=True)
  copies.remove(partial)
  try:
    yield partial
    partial.rename(target)
  except BaseException:
    with contextlib.suppress(OSError):
      copies.remove(partial)
    raise


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
