"""A folder of arrays, with JSON about them and a hash of every file.

A step's folder is one, which `train.checkpoint` manages. Others lie next to the steps
and are written once: the weights that a run needs and does not train, its items.
"""

import contextlib
import errno
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from gen_jax import tree
from gen_jax.system import files, memory, signals
from gen_jax.train import proof
from gen_jax.types import InputError, Params, PyTree, first_line

# Replicas each write a part of a large array. Small arrays are not split, since each
# shape and part needs a compiled program.
_ARRAYS = ocp.type_handlers.create_type_handler_registry(
  (
    jax.Array,
    # Nobody asks a checkpoint how its arrays were sharded: readers bring shardings.
    ocp.type_handlers.ArrayHandler(
      min_slice_bytes_for_replica_parallel=2**20, enable_write_sharding_file=False
    ),
  )
)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_IDLE = "text_encoder"
_MAKE_ROOM = "make room; the same command then continues from the last checkpoint"


@contextlib.contextmanager
def using(directory: pathlib.Path) -> Iterator[None]:
  """Orbax at work in a folder: without its warnings that it does what it was asked to.

  Raises:
    InputError: the file system refused a write.
  """
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(max(level, logging.ERROR))
  try:
    yield
  except (ValueError, OSError) as error:
    proof.check_answers(error, directory)
    reason = _refused(error)
    if reason is None:
      raise
    raise InputError(f"cannot write to {directory}: {reason}; {_MAKE_ROOM}") from error
  finally:
    logger.setLevel(level)


def _refused(error: Exception) -> str | None:
  """The reason if the error is a write that the file system refused; else None."""
  if isinstance(error, OSError):
    return error.strerror if error.errno in _NO_ROOM else None
  code = re.search(r"os.error\D*(\d+)", str(error), re.IGNORECASE)  # tensorstore's
  return os.strerror(int(code[1])) if code else None


def home(workdir: str | pathlib.Path) -> pathlib.Path:
  """The folder of steps and items."""
  directory = files.path(workdir, "workdir").absolute() / "checkpoints"
  proof.check_path(directory)
  if not files.is_local(directory):
    proof.teach_s3()
  return directory


def handlers(*notes: str) -> dict[str, ocp.CheckpointHandler]:
  """How arrays and the JSON next to them are written and read."""
  # Compression keeps a second copy in memory until all is written, and hardly shrinks
  # weights. Without a bound of bytes in flight, which none reaches (it is 96 GB), all
  # arrays are written at once, not each with an index and a wait for the disk.
  how = {"use_compression": False, "save_concurrent_bytes": None}
  arrays = ocp.BasePyTreeCheckpointHandler(**how, type_handler_registry=_ARRAYS)
  return {
    "state": proof.StateHandler(handler_impl=arrays, type_handler_registry=_ARRAYS),
    **{note: ocp.JsonCheckpointHandler() for note in notes},
  }


def _opened(folder: pathlib.Path, *notes: str) -> ocp.Checkpointer:
  """What reads the folder of a step, and reads and writes that of an item."""
  kind = proof.path_class(folder)
  options = ocp.CompositeOptions(temporary_path_class=kind)
  handler = ocp.CompositeCheckpointHandler(
    composite_options=options, **handlers(*notes)
  )
  return ocp.Checkpointer(handler, temporary_path_class=kind)


def check_room(directory: pathlib.Path, what: str, arrays: PyTree) -> None:
  """Raises InputError unless a folder, which is made, has room for the arrays."""
  if not files.is_local(directory):
    return
  try:
    directory.mkdir(exist_ok=True)  # a user may delete it
  except OSError as error:
    raise InputError(f"cannot write to {directory}: {error.strerror}") from None
  needed = tree.num_bytes(arrays) / jax.process_count()
  free = shutil.disk_usage(directory).free
  if free < needed:
    raise InputError(
      f"cannot save {what} to {directory}: {needed / 2**20:,.2f} MiB"
      f" needed, {free / 2**20:,.2f} MiB free; {_MAKE_ROOM}"
    )


def shapes(folder: pathlib.Path) -> proof.Shapes:
  """{path: shape} of the arrays, from their metadata."""
  return proof.shapes(folder / "state")


def check(where: str, have: proof.Shapes, abstract: PyTree) -> None:
  """Raises InputError if {path: shape} are not those of `abstract`."""
  want = {p: tuple(x.shape) for p, x in tree.flatten(abstract).items()}
  wrong = [
    f"{path} (checkpoint {have.get(path, 'none')}, model {want.get(path, 'none')})"
    for path in sorted(have.keys() | want.keys())
    if have.get(path) != want.get(path)
  ]
  if wrong:
    more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
    raise InputError(
      f"checkpoint {where} belongs to another model: {'; '.join(wrong[:4])}{more}"
    )


def _held(have: proof.Shapes, abstract: PyTree) -> proof.Shapes:
  """{path: shape} without a text encoder, where the model has none.

  Earlier versions kept an idle one for every unconditional model.
  """
  if any(_IDLE in path.split("/") for path in tree.flatten(abstract)):
    return have
  return {path: s for path, s in have.items() if _IDLE not in path.split("/")}


def read(
  folder: pathlib.Path,
  abstract: PyTree,
  note: str | None,
  part: str = "",
  warn: Callable[[str], None] = print,
) -> tuple[PyTree, dict[str, Any]]:
  """Arrays of a step or an item, and the JSON next to them.

  Args:
    abstract: the arrays' dtypes and shardings.
    note: name of the JSON; None: it is not read.
    part: path of the part that is read, 'ema/' say; '': all.
    warn: told of a step without hashes.

  Raises:
    InputError: of another model.
    ValueError, and others of orbax and tensorstore: damaged.
  """
  if not proof.verify(folder):
    warn(
      f"step {folder.name} has no {files.HASHES} (earlier versions wrote none): its"
      " values are not verified"
    )
  have, names = shapes(folder), part.split("/")[:-1]
  held = {p: s for p, s in _held(have, abstract).items() if p.startswith(part)}
  wanted = abstract
  for name in reversed(names):
    wanted = {name: wanted}
  check(str(folder), held, wanted)
  memory.check("the checkpoint", abstract)
  state = proof.StateRestore(
    item=wanted,
    restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
    **({} if held == have else {"partial_restore": True}),
  )
  notes = {note: ocp.args.JsonRestore()} if note else {}
  with _opened(folder, *notes) as reader:
    found = reader.restore(folder, args=ocp.args.Composite(state=state, **notes))
  state = found["state"]
  for name in names:
    state = state[name]
  return state, found[note] if note else {}


def save(
  workdir: str | pathlib.Path, name: str, params: Params, about: Mapping[str, Any]
) -> None:
  """Writes weights that a run needs and does not train, whole or not at all.

  Args:
    about: what is known of them, for JSON.

  Raises:
    InputError: not enough free space, or the file system refused a write.
  """
  directory = home(workdir)
  check_room(directory, name, params)
  args = ocp.args.Composite(
    state=proof.StateSave(params), about=ocp.args.JsonSave({**about})
  )
  with signals.deferred(), using(directory), _opened(directory, "about") as writer:
    writer.save(directory / name, args=args)


def exists(workdir: str | pathlib.Path, name: str) -> bool:
  """Whether a workdir holds an item of this name."""
  return proof.is_complete(home(workdir) / name)


def restore(
  workdir: str | pathlib.Path, name: str, abstract: Params
) -> tuple[Params, dict[str, Any]] | None:
  """The weights and what is known of them; None without such an item.

  Raises:
    InputError: they are damaged, or of another model.
  """
  folder = home(workdir) / name
  if not proof.is_complete(folder):
    return None
  try:
    if not (folder / files.HASHES).exists():
      raise ValueError(f"{files.HASHES} is missing")
    with signals.deferred(), using(folder):
      return read(folder, abstract, "about")
  except InputError:
    raise
  except Exception as error:  # any of orbax or tensorstore
    raise InputError(
      f"{folder} cannot be read ({first_line(error)[:200]}); restore it from a copy"
    ) from None
