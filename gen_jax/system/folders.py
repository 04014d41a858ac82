"""Folders that commands write, and unfinished ones that an equal command finds."""

import contextlib
import hashlib
import io
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from gen_jax.errors import InputError
from gen_jax.system import copies, files

# Pieces of work in order: i -> the arrays from number i on; `Keep` makes or finds all.
Pieces = Callable[[int], Iterator[np.ndarray]]
Keep = Callable[[Pieces], Iterator[np.ndarray]]

ABOUT = "about.json"  # what the pieces of an unfinished command are of


@contextlib.contextmanager
def out(given: pathlib.Path | None, usual: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields the folder that --out names, or the usual one.

  It is there in the body, and gone again if the body fails and has left nothing in it.

  Raises:
    InputError: it cannot be written to.
  """
  folder = given or usual
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(
      f"cannot write to {folder}: {error.strerror or error}; give another --out"
    ) from None
  try:
    yield folder
  except BaseException:
    with contextlib.suppress(OSError):  # a folder with something in it stays
      folder.rmdir()
    raise


@contextlib.contextmanager
def unfinished(home: pathlib.Path, about: dict[str, Any]) -> Iterator[None]:
  """A folder for pieces of work, which an equal command finds if this one is cut off.

  It is empty in the body, or holds the pieces of an equal command. Should the body
  fail, the pieces stay; if it ends well, or there are none, the folder goes.

  Args:
    about: what makes a command equal: all that its pieces depend on.
  """
  about = json.loads(json.dumps(about))
  with contextlib.suppress(InputError):
    if files.read_json(home / ABOUT) != about:
      copies.remove(home)
  if not (home / ABOUT).exists():
    copies.remove(home)
    home.mkdir(parents=True)
    if jax.process_index() == 0:
      files.write_json(home / ABOUT, about)
  try:
    yield
  except BaseException:
    if [path.name for path in home.iterdir()] == [ABOUT]:
      _tidy(home)
    raise
  _tidy(home)


def _tidy(folder: pathlib.Path) -> None:
  with contextlib.suppress(OSError):
    copies.remove(folder)


def nothing_kept(pieces: Pieces) -> Iterator[np.ndarray]:
  """A `Keep` without files: all pieces are made."""
  return pieces(0)


def kept(home: pathlib.Path, pieces: Pieces) -> Iterator[np.ndarray]:
  """Yields the arrays of `pieces(0)`; each is in a file of `home` before it is needed.

  An equal command finds them there and continues after the last one.
  """
  home.mkdir(exist_ok=True)
  for i in itertools.count():
    (*_, path) = (None, *home.glob(f"{i:06}.*.npy"))
    if path is None or files.sha256(path)[:16] != path.name.split(".")[1]:
      break
    yield np.load(io.BytesIO(path.read_bytes()))
  for j, array in enumerate(pieces(i), i):
    np.save(file := io.BytesIO(), array)
    content = file.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    files.write_bytes(home / f"{j:06}.{digest[:16]}.npy", content)
    yield array
