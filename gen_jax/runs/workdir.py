"""A workdir: config.json, run.json, tokenizer/, metrics.jsonl, checkpoints/, ..."""

import contextlib
import functools
import importlib.metadata
import json
import pathlib
import platform
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from gen_jax import build
from gen_jax.build import overrides as overriding
from gen_jax.build import upgrade
from gen_jax.data import kept
from gen_jax.nn import attention
from gen_jax.system import copies, files
from gen_jax.train import items, proof
from gen_jax.types import InputError

# What may differ when a workdir is opened again: it changes nothing learned so far.
LENGTH = ("train.num_steps", "train.num_epochs", "train.patience")
MAY_CHANGE = (
  *LENGTH,
  *("mesh", "sampling", "train.log_every", "train.keep", "train.profile_steps"),
  *("train.first_rows", "train.writers"),
  "init_from.workdir",  # it may move: `load_base` knows its weights by their hash
  "task.codec.workdir",  # it may go: its weights are copied
  "imports",  # modules may move
)
FORMAT = 1  # of a workdir, in run.json; those of before have none
OF_IMAGES = ("image_size", "channels", "caption_length")  # those of a run's start
ATTENTION = "attention_impl"  # under task; see `attention.is_exact`
AUTOENCODER = "autoencoder"  # the item that makes the latents; once a workdir in here
_OF_AN_UNTRAINED_RUN = (  # config.json goes last: without it this is no workdir
  *("checkpoints", "tokenizer", AUTOENCODER, "init_from.json", "health.json"),
  *("metrics.jsonl", "tensorboard", "writers", "wandb", "mlflow", kept.CLASS_NAMES),
  *("run.json", "config.json"),
)
_PACKAGES = ("gen_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
_version = functools.cache(importlib.metadata.version)  # 5 ms each


def _may_change(key: str) -> bool:
  return any(f"{key}.".startswith(f"{may}.") for may in MAY_CHANGE)


def _inexact(block: Any) -> Any:
  """A block without the attention that computes the same as any other."""
  if not isinstance(block, dict):
    return block
  return {
    key: _inexact(value)
    for key, value in block.items()
    if key != ATTENTION or not attention.is_exact(build.build(ATTENTION, value))
  }


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
  """A config as {"dotted.key": value}."""
  if not isinstance(config, dict) or not config:
    return {prefix: config}
  found = {}
  for key, value in config.items():
    found.update(flat(value, f"{prefix}.{key}" if prefix else key))
  return found


def _changed(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
  """{key: both values} of what two configs have otherwise, but for exact kernels."""
  old, new = (flat({**c, "task": _inexact(c["task"])}) for c in (old, new))
  keys = sorted(old.keys() | new.keys())
  pairs = ((key, tuple(c.get(key, "absent") for c in (old, new))) for key in keys)
  return {key: pair for key, pair in pairs if pair[0] != pair[1]}


@contextlib.contextmanager
def claim(workdir: pathlib.Path, config: dict[str, Any]) -> Iterator[dict[str, Any]]:
  """Writes config.json and run.json, or checks that the config there is this one.

  Yields {key: value there before} of what may change and does; run.json keeps it under
  'history', with the step at which it did. Should the body fail, both files are as
  they were, and whatever was not there before is taken away again. A run that ended
  before its first step has learned nothing, and another config takes its place. Of
  several processes the first alone writes; the others must see what it wrote.

  Raises:
    InputError: the workdir belongs to another config (says what differs), cannot be
      written to, or is not the one of process 0.
  """
  config = json.loads(json.dumps(build.resolved(config)))  # as it will be read
  if jax.process_index():
    _check_shared(workdir, config)
    yield {}
    return
  before = _own(workdir, config)
  history = about(workdir).get("history", [])
  if before:
    history = [*history, {"step": latest_step(workdir) or 0, "before": before}]
  whole = ("tokenizer", "tokenizer.partial", "checkpoints")
  names = ("config.json", "run.json", "init_from.json", kept.CLASS_NAMES, *whole)
  paths = [workdir / name for name in names]
  new = [path for path in (*paths, workdir, *workdir.parents) if not path.exists()]
  old = {path: path.read_bytes() for path in paths[:2] if path.is_file()}
  try:
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      write_config(workdir, config, history)
    except OSError as error:
      raise InputError(
        f"cannot write to --workdir {workdir}: {error.strerror or error}; take another"
        " one"
      ) from None
    yield before
  except BaseException:
    for path, content in old.items():
      with contextlib.suppress(OSError):
        files.write_bytes(path, content)
    for path in new:
      with contextlib.suppress(OSError):  # a folder with something else in it stays
        if path.name in whole and path.parent == workdir:
          copies.remove(path)
        else:
          path.rmdir() if path.is_dir() else path.unlink()
    raise


def _checkpoints(workdir: pathlib.Path) -> list[str]:
  """Names in the folder of checkpoints: steps, and what is unfinished or set aside."""
  folder = workdir / "checkpoints"
  found = folder.iterdir() if folder.is_dir() else ()
  return [path.name for path in found if proof.is_complete(path)]


def steps(workdir: pathlib.Path) -> tuple[int, ...]:
  """All steps that have a checkpoint, in order."""
  return tuple(sorted(int(n) for n in _checkpoints(workdir) if n.isdecimal()))


def latest_step(workdir: pathlib.Path) -> int | None:
  """The newest step that has a checkpoint, None without any."""
  return max(steps(workdir), default=None)


def _check_shared(workdir: pathlib.Path, config: dict, secs: float = 10.0) -> None:
  """Raises InputError unless the config that process 0 wrote appears within `secs`."""
  deadline = time.monotonic() + secs  # network file systems show a file late
  while True:
    with contextlib.suppress(OSError, ValueError):
      if files.read_json(workdir / "config.json") == config:
        return
    if time.monotonic() > deadline:
      raise InputError(
        f"--workdir {workdir} on {socket.gethostname()} is not that of process 0: put"
        " it on a file system that all hosts share"
      )
    time.sleep(0.2)


def check_owner(workdir: pathlib.Path, config: dict[str, Any]) -> dict[str, Any]:
  """{key: value there} of what a workdir's config has otherwise.

  Raises:
    InputError: the workdir belongs to another config, or is none. One whose run has
      learned nothing belongs to nobody.
  """
  proof.check_path(workdir.absolute())
  if not (workdir / "config.json").exists():
    for name in ("tokenizer", "checkpoints"):
      if (workdir / name).exists():
        raise InputError(
          f"{workdir} has {name} but no config.json: it is not a workdir of this"
          " program; take another --workdir"
        )
    return {}
  changed = _changed(read_config(workdir), build.resolved(config))
  differ = [
    f"{key} ({there!r} there, {now!r} now)"
    for key, (there, now) in changed.items()
    if not _may_change(key)
  ]
  if differ and not _is_untrained(workdir):
    more = f" and {len(differ) - 8} more" if len(differ) > 8 else ""
    raise InputError(
      f"workdir {workdir} belongs to another config: {'; '.join(differ[:8])}{more};"
      " take another --workdir, or give the same values"
    )
  return {key: there for key, (there, _) in changed.items()}


def _own(workdir: pathlib.Path, config: dict[str, Any]) -> dict[str, Any]:
  """`check_owner`, and what an untrained run of another config left is taken away."""
  changed = check_owner(workdir, config)
  if not all(map(_may_change, changed)):
    print(f"{workdir} holds an untrained run of another config; it is replaced")
    for name in _OF_AN_UNTRAINED_RUN:
      copies.remove(workdir / name)
  return changed


def _is_untrained(workdir: pathlib.Path) -> bool:
  """Whether no step was ever made: no checkpoint but that of step 0, which has none."""
  others = [n for n in _checkpoints(workdir) if n[0].isdecimal() and n != "0"]
  return all(n.startswith("0.orbax-") for n in others) and not is_imported(workdir)


def evaluation(workdir: pathlib.Path) -> pathlib.Path:
  """Where the last `gen-jax evaluate` has written its numbers."""
  return workdir / "evaluation.json"


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a JSON file, whole or not at all; of several processes the first alone."""
  if jax.process_index() == 0:
    files.write_json(path, value)


def write_sealed(path: pathlib.Path, value: dict[str, Any]) -> None:
  """`write_json` with a hash, for `files.read_sealed`."""
  write_json(path, files.sealed(value))


def write_config(
  workdir: pathlib.Path, config: dict[str, Any], history: Sequence[dict[str, Any]] = ()
) -> None:
  """Writes config.json, and run.json: by what code, and the config's hash.

  The hash comes first, next to that of the config there is: a kill in between is borne.
  """
  noted = about(workdir).get("config_sha256", [])
  run = {
    "format": FORMAT,
    "code_revision": _revision(),
    "python": platform.python_version(),
    "packages": {name: _version(name) for name in _PACKAGES},
    "config_sha256": [*noted[-1:], files.value_sha256(config)],
    **({"history": [*history]} if history else {}),
  }
  write_sealed(workdir / "run.json", run)
  write_json(workdir / "config.json", config)


def about(workdir: pathlib.Path) -> dict[str, Any]:
  """What run.json says."""
  path = workdir / "run.json"
  return files.read_sealed(path) if path.exists() else {}


@functools.cache
def _revision() -> str | None:
  """The commit that this code runs from, or None outside a checkout of its own."""
  root = pathlib.Path(__file__).parents[2]
  command = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}", "describe"]
  command += ["--always", "--dirty", "--abbrev=40"]
  with contextlib.suppress(OSError, subprocess.TimeoutExpired):
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    return done.stdout.strip() or None
  return None


def read_config(
  workdir: pathlib.Path, overrides: overriding.Overrides = ()
) -> dict[str, Any]:
  """The config of a workdir, with overrides of what may change (its mesh, say).

  Earlier versions kept no defaults: they are filled in, as they are today.

  Raises:
    InputError: not a workdir, or an override of what may not change.
  """
  for key, _ in overrides:
    if not _may_change(key) and ATTENTION not in upgrade.key(key).split(".")[1:]:
      raise InputError(
        f"config key {key!r} belongs to the trained model; what may change is"
        f" {', '.join(MAY_CHANGE)}, and exact kernels of attention"
      )
  path = workdir / "config.json"
  _check_whole(workdir)
  try:
    written = files.parse_json(files.read_bytes(path), "it")
  except InputError as error:
    raise InputError(
      f"{path} is damaged ({error}); write it again from the config, or take another"
      " workdir"
    ) from None
  moved = overriding.apply({}, [(k, v) for k, v in overrides if k == "imports"])
  config = upgrade.config(written)
  config = build.resolved({**config, **moved} if isinstance(config, dict) else config)
  try:
    build.check_config(config)
  except InputError as error:
    raise InputError(f"{path}: {error}") from None
  noted = about(workdir).get("config_sha256")  # none where an earlier version wrote it
  if noted and files.value_sha256(written) not in noted:
    raise InputError(
      f"{path} is damaged: it is not as it was written (SHA-256 in run.json); put it"
      " back from a copy, or delete run.json if you changed it yourself"
    )
  if not overrides:
    return config
  opened = build.resolved(overriding.apply(build.explicit(config), overrides))
  if not all(map(_may_change, _changed(config, opened))):
    raise InputError(
      f"{workdir} was trained with another attention: only kernels that compute the"
      " same (xla, chunked, ring, splash, cudnn) may take each other's place"
    )
  return opened


def _check_whole(workdir: pathlib.Path) -> None:
  """Raises InputError for what is no run, half of one, or of a newer format."""
  if not (workdir / "config.json").exists():
    parts = ("run.json", "tokenizer", "checkpoints", "import.json")
    found = [name for name in parts if (workdir / name).exists()]
    if not found:
      raise InputError(
        f"{workdir} is not a workdir: it has no config.json; `gen-jax train --workdir"
        f" {workdir}` makes one"
      )
    if "checkpoints" in found:
      cure = "put config.json back from a copy"
    else:
      cure = "delete it, and give the command that began it again"
    raise InputError(
      f"{workdir} is a half-written run: it has {', '.join(found)} but no config.json;"
      f" {cure}"
    )
  number = about(workdir).get("format", FORMAT)
  if number not in range(1, FORMAT + 1):
    raise InputError(
      f"{workdir} is of format {number!r:.20}, and this version of gen_jax reads up to"
      f" {FORMAT}: install the one that wrote it (packages in run.json), or a newer one"
    )


def inherit_task(
  config: dict[str, Any], overrides: overriding.Overrides, workdir: pathlib.Path | None
) -> dict[str, Any]:
  """A config whose task is None gets that of the model it starts from.

  So do size, channels and length of captions of its images, where they are None.

  Args:
    workdir: of the run itself: where it has begun already, its own task is taken.

  Raises:
    InputError: there is no such model.
  """
  if config.get("task", {}) is not None:
    return config
  own = [(key, text) for key, text in overrides if key.split(".")[0] == "init_from"]
  start = overriding.apply(config, own).get("init_from") or {}
  has_begun = workdir is not None and (workdir / "config.json").exists()
  if workdir is not None and has_begun:
    home = workdir
  else:
    if not start.get("workdir"):
      raise InputError("task=None needs a model: set init_from.workdir")
    home = files.path(start["workdir"], "init_from.workdir")
    if not (home / "config.json").exists():
      raise InputError(
        f"init_from.workdir={start['workdir']} is not a workdir: name the folder of a"
        " trained or imported model"
      )
  there = read_config(home)
  task, data = build.explicit(there)["task"], dict(config["data"])
  for key in (key for key in OF_IMAGES if key in data and data[key] is None):
    if key not in there["data"] and key != "caption_length":  # which not all read
      raise InputError(f"data.{key}=None, and {home} has none to take over; set it")
    data[key] = there["data"].get(key)
  if not has_begun and has_autoencoder(home):
    task = {**task, "codec": {**task["codec"], "workdir": str(home)}}
  return {**config, "task": task, "data": data}


def has_autoencoder(workdir: pathlib.Path) -> bool:
  """Whether a run keeps the autoencoder that it works in."""
  return items.exists(workdir, AUTOENCODER) or (workdir / AUTOENCODER).exists()


def unlike_start(config: dict[str, Any]) -> str | None:
  """One line about images that are not like those of the model a run starts from."""
  start = (config.get("init_from") or {}).get("workdir")
  home = start and files.path(start, "init_from.workdir")
  if not home or not (home / "config.json").exists():
    return None
  here, there = config["data"], read_config(home)["data"]
  keys = [k for k in OF_IMAGES if k in here and here[k] != there.get(k, here[k])]
  listed = ", ".join(f"data.{key}={here[key]} ({there[key]} there)" for key in keys)
  return f"not as in {start}, which this starts from: {listed}" if keys else None


def is_imported(workdir: pathlib.Path) -> bool:
  """Whether a workdir holds weights that came from elsewhere, and nothing else."""
  return (workdir / "import.json").exists()
