"""Integrity of checkpoints: hashes.json holds a hash of every file.

    write    each process hashes its own files in the thread that wrote them; the first
             process hashes shared files, reads back which arrays exist, and writes
             hashes.json. Only then is the folder renamed to its step: an existing step
             is complete. In a bucket nothing is renamed: a step is there when its
             hashes.json is.
    read     a step is damaged if a file lacks its hash or there are other files.

The array format detects damage only in its index: uncompressed values have no checksum.
"""

import functools
import glob
import json
import math
import pathlib
import re
from collections.abc import Awaitable, Callable

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from etils.epath import gpath
from jax.experimental import multihost_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from gen_jax import tree
from gen_jax.system import buckets, files, stores
from gen_jax.types import InputError, Unavailable, first_line

Shapes = dict[str, tuple[int, ...]]
_SILENT = re.compile(r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED)\b")
_MARK = ocp.path.atomicity.COMMIT_SUCCESS_FILE


def check_path(path: pathlib.Path) -> None:
  """Raises InputError for a path that tensorstore would misread."""
  try:
    str(path).encode()
  except UnicodeError:
    raise InputError(f"{str(path)!r} is not UTF-8; use another name") from None
  if "\\" in str(path):
    raise InputError(
      f"{str(path)!r} has a backslash, which the checkpoint library reads as a slash;"
      " use another name"
    )
  if not files.is_local(path) and glob.has_magic(str(path)):
    raise InputError(
      f"{str(path)!r} has brackets or stars, which the checkpoint library reads as a"
      " pattern in a bucket; use another name"
    )


class _Folder(gpath.PosixGPath):
  """A path whose own brackets and stars are literal in `glob`.

  Orbax globs the whole path for the processes' files.
  """

  def glob(self, pattern: str):
    return map(type(self), as_path(self).glob(pattern))


def as_path(path: epath.Path) -> pathlib.Path:
  """A path of orbax as one of this program."""
  text = str(path)
  return buckets.Address(text) if "://" in text else pathlib.Path(text)


async def _finalize(
  path: ocp.path.atomicity_types.TemporaryPath, usual: Callable[[], Awaitable[None]]
) -> None:
  """Completes a folder, one with a 'state' by writing its hashes, others as `usual`."""
  folder = as_path(path.get())
  if not (folder / "state").exists():
    return await usual()
  if path._checkpoint_metadata_store:
    path._checkpoint_metadata_store.wait_until_finished()
  _write(folder, path.get_final().name)
  if (final := as_path(path.get_final())) != folder:
    folder.rename(final)


class RenamedPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
  """A temporary folder; one with a 'state' is renamed when its hashes are written.

  Its parts ('state', ...) are temporary folders too until they are complete.
  """

  async def finalize(self) -> None:
    await _finalize(self, super().finalize)

  def get(self) -> epath.Path:
    return _Folder(super().get())


class MarkedPath(ocp.path.atomicity.CommitFileTemporaryPath):
  """A folder of a bucket; one with a 'state' is complete when its hashes are written.

  Its parts are complete when they have orbax's own mark.
  """

  async def finalize(self) -> None:
    await _finalize(self, super().finalize)

  def get(self) -> epath.Path:
    return buckets.Address(super().get())

  @classmethod
  async def validate(cls, temporary_path: epath.Path) -> None:
    if is_complete(as_path(temporary_path)):
      raise ocp.path.atomicity_types.ValidationError(f"{temporary_path} is complete")

  @classmethod
  async def validate_final(cls, final_path: epath.Path) -> None:
    if not is_complete(as_path(final_path)):
      raise ocp.path.atomicity_types.ValidationError(f"{final_path} is not complete")


def is_complete(folder: pathlib.Path) -> bool:
  """Whether a step, an item or a part of one was written to its end."""
  if files.is_local(folder):
    return folder.exists()  # by its name: see `RenamedPath`
  return (folder / files.HASHES).exists() or (folder / _MARK).exists()


@functools.cache
def teach_s3() -> None:
  """Has orbax write to S3: of the drivers of tensorstore it names Google's alone.

  Where it would name a folder of gs://, that of s3:// is named with S3's driver.
  """
  build = tensorstore_utils.build_kvstore_tspec

  @functools.wraps(build)
  def named(directory: str, *args, **kwargs):
    spec = build(re.sub("^s3:/+", "gs://", directory), *args, **kwargs)
    if directory.startswith("s3:"):
      base = spec if spec["driver"] != "ocdbt" else spec["base"]
      base |= stores.driver("s3")
    return spec

  tensorstore_utils.build_kvstore_tspec = named


def check_answers(error: BaseException, folder: pathlib.Path) -> None:
  """Raises Unavailable if tensorstore gave up on a bucket: nothing is damaged then."""
  if not files.is_local(folder) and _SILENT.search(str(error)):
    raise Unavailable(
      f"{folder} does not answer ({first_line(error)[:200]}): the same command goes on"
      " when it does"
    ) from None


def path_class(folder: pathlib.Path) -> type:
  """How orbax completes what it writes below a folder."""
  return RenamedPath if files.is_local(folder) else MarkedPath


class StateHandler(ocp.PyTreeCheckpointHandler):
  """Writes arrays, then this process's hashes and the expected shapes."""

  async def async_save(self, directory, *, args):
    futures = await super().async_save(directory, args=args)
    folder = as_path(directory)
    shapes = {path: tuple(x.shape) for path, x in tree.flatten(args.item).items()}
    return [ocp.future.ChainedFuture(futures, lambda: _note_own(folder, shapes))]


@ocp.args.register_with_handler(StateHandler, for_save=True)
class StateSave(ocp.args.PyTreeSave):
  """Arguments of `StateHandler`."""


@ocp.args.register_with_handler(StateHandler, for_restore=True)
class StateRestore(ocp.args.PyTreeRestore):
  """Arguments of `StateHandler`."""


def _part(folder: pathlib.Path, process: int) -> pathlib.Path:
  return folder / f"hashes.process_{process}.json"


def _note_own(folder: pathlib.Path, shapes: Shapes) -> None:
  """Writes the hashes of this process's files and the shapes of all arrays."""
  process = jax.process_index()
  own = f"ocdbt.process_{process}"
  found = files.hashes(folder / own, files.names(folder / own))
  note = {"files": {f"{own}/{k}": v for k, v in found.items()}, "shapes": shapes}
  files.write_json(_part(folder, process), note)


def _kind(name: str) -> tuple[str, int | str]:
  """What a folder of this name holds: ('step', 3), or ('item', 'base')."""
  return ("step", int(name)) if name.isdecimal() else ("item", name)


def _write(folder: pathlib.Path, name: str) -> None:
  """Checks that all arrays exist, and writes hashes.json.

  Args:
    name: that the folder will have.

  Raises:
    InputError: an array or a process's hashes are missing.
  """
  state = folder / "state"
  noted: dict[str, str] = {}
  shapes: Shapes = {}
  kind, value = _kind(name)
  for process in range(jax.process_count()):
    part = files.read_json(_part(state, process))
    noted |= {f"state/{file}": digest for file, digest in part["files"].items()}
    shapes = {path: tuple(shape) for path, shape in part["shapes"].items()}
    _part(state, process).unlink()
  found = arrays(state)
  want = {path.replace("/", "."): shape for path, shape in shapes.items()}
  if found != want:
    odd = sorted(k for k in found.keys() | want.keys() if found.get(k) != want.get(k))
    raise InputError(
      f"cannot save {kind} {value}: {len(odd)} of {len(want)} arrays cannot be read"
      f" back ({', '.join(odd[:4])}) from {folder.parent}; check the file system"
    )
  rest = [file for file in files.names(folder) if file not in noted]
  everything = {**noted, **files.hashes(folder, rest)}
  files.write_json(folder / files.HASHES, {kind: value, "files": everything})


def _store(folder: pathlib.Path) -> tensorstore.KvStore:
  base = {"driver": "file", "path": f"{folder}/"}
  if isinstance(folder, buckets.Address):
    base = folder.kvstore()
  return tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()


def shapes(folder: pathlib.Path) -> Shapes:
  """{path: shape} of the arrays that orbax's metadata names, without making each.

  Raises:
    KeyError, ValueError: its metadata or an array is missing or damaged.
  """
  named = json.loads((folder / "_METADATA").read_bytes())["tree_metadata"].values()
  paths = [
    [str(part["key"]) for part in one["key_metadata"]]
    for one in named
    if not one["value_metadata"]["skip_deserialize"]  # an empty node
  ]
  store = _store(folder)
  read = {"/".join(path): store.read(f"{'.'.join(path)}/.zarray") for path in paths}
  found = {path: json.loads(about.result().value) for path, about in read.items()}
  return {path: tuple(about["shape"]) for path, about in found.items()}


def arrays(folder: pathlib.Path) -> Shapes:
  """{name: shape} of the complete arrays in a folder."""
  store = _store(folder)
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


def verify(folder: pathlib.Path) -> bool:
  """Checks the hashes of a step or item, each process a share; False without any.

  Raises:
    ValueError: names a file that is damaged, missing or extra.
  """
  if not (folder / files.HASHES).exists():
    return False
  try:
    wrong = _wrong(folder)
  except (InputError, OSError, LookupError, TypeError, AttributeError) as error:
    wrong = str(error)
  if jax.process_count() > 1:  # all must choose the same step
    found = multihost_utils.process_allgather(np.int32(bool(wrong)))
    wrong = wrong or ("another process has found damage" if found.any() else None)
  if wrong:
    raise ValueError(wrong)
  return True


def _wrong(folder: pathlib.Path) -> str | None:
  noted = files.read_json(folder / files.HASHES)
  kind, value = _kind(folder.name)
  if noted[kind] != value:
    return f"it holds {kind} {noted[kind]}"
  want = noted["files"]
  odd = sorted(want.keys() ^ set(files.names(folder)))
  if odd:
    return f"{odd[0]} is {'missing' if odd[0] in want else 'not one of its files'}"
  by_size = sorted(want, key=lambda name: ((folder / name).stat().st_size, name))
  mine = by_size[jax.process_index() :: jax.process_count()]
  for name, digest in files.hashes(folder, mine).items():
    if digest != want[name]:
      return f"{name} is not as it was written"
  return None


def is_as_written(folder: pathlib.Path, name: str) -> bool:
  """Whether a step's file has its hash; True if the step has no such file or hashes."""
  if not (folder / files.HASHES).exists():
    return True
  try:
    want = files.read_json(folder / files.HASHES)["files"].get(name)
    have = files.sha256(folder / name) if (folder / name).exists() else None
  except (InputError, OSError, LookupError, TypeError, AttributeError):
    return False
  return have == want
