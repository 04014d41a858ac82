"""Proof that a checkpoint is what was written: a hash of every file, in hashes.json.

    write    each process hashes its own files as soon as they are written, in the
             thread that wrote them; the first process hashes what all share, reads back
             which arrays there are, and writes hashes.json. Only then does the folder
             get its name: a step that is there is whole.
    read     every file has its hash and there is no other, or the step is damaged.

The arrays' own format finds damage in its index alone: without compression, another
value is a value.
"""

import json
import math
import os
import pathlib
import re

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from jax.experimental import multihost_utils

from gen_jax import tree
from gen_jax.system import files
from gen_jax.types import InputError

Shapes = dict[str, tuple[int, ...]]


def check_path(path: pathlib.Path) -> None:
  """Raises InputError for a path that the arrays' library would take for another."""
  try:
    str(path).encode()
  except UnicodeError:
    raise InputError(f"{str(path)!r} is not UTF-8; take another name") from None
  if "\\" in str(path):
    raise InputError(
      f"{str(path)!r} has a backslash, which the checkpoints' library takes for a"
      " slash; take another name"
    )


class _Folder(type(epath.Path("/"))):
  """A path whose own brackets and stars mean themselves in `glob`.

  Orbax finds what the processes have written by a glob, which is the whole path.
  """

  def glob(self, pattern: str):
    return map(type(self), pathlib.Path(os.fspath(self)).glob(pattern))


class ProvenPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
  """A folder under way; that of a step gets its name when all that it holds is proven.

  The items in it ('state', ...) are folders under way as well, until they are done.
  """

  def get(self) -> epath.Path:
    return _Folder(super().get())

  async def finalize(self) -> None:
    if not self.get_final().name.isdecimal():
      return await super().finalize()
    if self._checkpoint_metadata_store:
      self._checkpoint_metadata_store.wait_until_finished()
    folder = pathlib.Path(os.fspath(self.get()))
    _write(folder, int(self.get_final().name))
    folder.rename(os.fspath(self.get_final()))


class StateHandler(ocp.PyTreeCheckpointHandler):
  """Writes arrays, and then what this process has written and what should be there."""

  async def async_save(self, directory, *, args):
    futures = await super().async_save(directory, args=args)
    folder = pathlib.Path(os.fspath(directory))
    shapes = {path: tuple(x.shape) for path, x in tree.flatten(args.item).items()}
    note = lambda: _note_own(folder, shapes)  # noqa: E731
    return [ocp.future.ChainedFuture(futures, note)]


@ocp.args.register_with_handler(StateHandler, for_save=True)
class StateSave(ocp.args.PyTreeSave):
  """Arguments of `StateHandler`."""


@ocp.args.register_with_handler(StateHandler, for_restore=True)
class StateRestore(ocp.args.PyTreeRestore):
  """Arguments of `StateHandler`."""


def _part(folder: pathlib.Path, process: int) -> pathlib.Path:
  return folder / f"hashes.process_{process}.json"


def _note_own(folder: pathlib.Path, shapes: Shapes) -> None:
  """Writes what this process has written: its folder of a state, {name: SHA-256}."""
  process = jax.process_index()
  own = f"ocdbt.process_{process}"
  found = files.hashes(folder / own, files.names(folder / own))
  note = {"files": {f"{own}/{k}": v for k, v in found.items()}, "shapes": shapes}
  files.write_json(_part(folder, process), note)


def _write(folder: pathlib.Path, step: int) -> None:
  """Reads back what the processes have written, and writes hashes.json.

  Raises:
    InputError: an array or the note of a process is not there.
  """
  state, noted, shapes = folder / "state", {}, {}
  for process in range(jax.process_count()):
    part = files.read_json(_part(state, process))
    noted |= {f"state/{name}": digest for name, digest in part["files"].items()}
    shapes = {path: tuple(shape) for path, shape in part["shapes"].items()}
    _part(state, process).unlink()
  found = arrays(state)
  want = {path.replace("/", "."): shape for path, shape in shapes.items()}
  if found != want:
    odd = sorted(k for k in found.keys() | want.keys() if found.get(k) != want.get(k))
    raise InputError(
      f"cannot save step {step}: of {len(want)} arrays {len(odd)} cannot be read back"
      f" ({', '.join(odd[:4])}) from {folder.parent}; look at the file system"
    )
  rest = [name for name in files.names(folder) if name not in noted]
  everything = {**noted, **files.hashes(folder, rest)}
  files.write_json(folder / files.HASHES, {"step": step, "files": everything})


def arrays(folder: pathlib.Path) -> Shapes:
  """{name: shape} of the arrays in a folder whose every piece is there."""
  base = {"driver": "file", "path": f"{folder}/"}
  store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
  keys = {key.decode() for key in store.list().result()}
  pieces: dict[str, int] = {}
  for key in keys:
    name, _, last = key.rpartition("/")
    if re.fullmatch(r"\d+(\.\d+)*", last):
      pieces[name] = pieces.get(name, 0) + 1
  found = {}
  for name in sorted(pieces):
    about = json.loads(store.read(f"{name}/.zarray").result().value)
    shape, piece = tuple(about["shape"]), about["chunks"]
    whole = math.prod(-(-n // m) for n, m in zip(shape, piece, strict=True))
    if pieces[name] == whole:
      found[name] = shape
  return found


def verify(folder: pathlib.Path, step: int) -> bool:
  """Whether a step has hashes; then all of them fit. Each process reads its share.

  Raises:
    ValueError: names a file that is damaged, gone, or too many.
  """
  if not (folder / files.HASHES).exists():
    return False
  try:
    wrong = _wrong(folder, step)
  except (InputError, OSError, LookupError, TypeError, AttributeError) as error:
    wrong = str(error)
  if jax.process_count() > 1:  # all go back to the same step
    found = multihost_utils.process_allgather(np.int32(bool(wrong)))
    wrong = wrong or ("another process has found damage" if found.any() else None)
  if wrong:
    raise ValueError(wrong)
  return True


def _wrong(folder: pathlib.Path, step: int) -> str | None:
  noted = files.read_json(folder / files.HASHES)
  if noted["step"] != step:
    return f"it holds step {noted['step']}"
  want = noted["files"]
  odd = sorted(want.keys() ^ set(files.names(folder)))
  if odd:
    return f"{odd[0]} is {'missing' if odd[0] in want else 'none of its files'}"
  by_size = sorted(want, key=lambda name: ((folder / name).stat().st_size, name))
  mine = by_size[jax.process_index() :: jax.process_count()]
  for name, digest in files.hashes(folder, mine).items():
    if digest != want[name]:
      return f"{name} is not as it was written"
  return None


def is_as_written(folder: pathlib.Path, name: str) -> bool:
  """Whether a file of a step, if it has one of that name, is the one that was noted."""
  if not (folder / files.HASHES).exists():
    return True
  try:
    want = files.read_json(folder / files.HASHES)["files"].get(name)
    have = files.sha256(folder / name) if (folder / name).exists() else None
  except (InputError, OSError, LookupError, TypeError, AttributeError):
    return False
  return have == want
