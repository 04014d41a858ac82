"""Makes a store: several processes, killed at any moment, the same bytes.

    about.json, tokenizer/   the job; written first
    keys of all documents    only if copies are dropped
    shards, piece by piece   see `worker`
    manifest.json            written last: the store is whole

The source is noted by names, sizes and times while it is read, by the hash of its
documents in the end. A store depends on the source, the tokenizer and the options, not
on the number of processes nor on how often it was begun, nor on whether it is on a disk
or in a bucket; see `folder`.
"""

import contextlib
import fcntl
import functools
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from gen_jax.data.tokens import duplicates, folder, store
from gen_jax.errors import InputError
from gen_jax.system import files, processes

_EVERY_SECS = 5.0  # between lines about progress
_ENVIRONMENT = (  # a process is a core
  "TOKENIZERS_PARALLELISM=false",
  "RAYON_NUM_THREADS=1",
  "OMP_NUM_THREADS=1",
  "JAX_PLATFORMS=cpu",
)

# (words of a worker, its log) -> the worker; what it prints is appended to the log. A
# worker that died may be started again, as long as it is never there twice.
Start = Callable[[Sequence[str], pathlib.Path], processes.Process]


class Job(Protocol):
  """What a store is made of.

  Attributes:
    kind: one of `worker.KINDS`, and the phase that writes its shards.
    duplicates: which copies are dropped: None, 'exact' or 'near'.
    shard_bytes: of the source, in a shard.
  """

  kind: str
  duplicates: str | None
  shard_bytes: int

  def about(self) -> dict[str, Any]:
    """All that the bytes of the store depend on."""

  def made_of(self) -> dict[str, Any]:
    """The part of `about` that the manifest keeps, wherever the source lies."""

  def num_bytes(self) -> int:
    """Bytes of the source, where they are known."""

  def check(self) -> None:
    """Raises InputError for a source that cannot be read."""

  def prepare(self, home: pathlib.Path) -> None:
    """Writes what workers and readers need next to the shards."""

  def manifest(self, pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The manifest, of what `folder.Folder.add` noted of each piece."""


def make(
  home: pathlib.Path, job: Job, num_workers: int, start: Start | None = None
) -> dict[str, Any]:
  """Makes the store, or what is missing of it; returns its manifest.

  Args:
    start: of a worker; on this machine by default.

  Raises:
    InputError: what cannot be read, or a folder that holds something else.
  """
  place = folder.Folder(home)
  if (home / store.MANIFEST).exists():
    return _whole(place, job)
  job.check()
  with _held(place, job) as lock:
    start = start or functools.partial(_start, lock)
    try:
      if job.duplicates and not place.is_marked():
        _run(place, "keys", job, num_workers, start)
        place.mark_copies(duplicates.mark)
      _run(place, job.kind, job, num_workers, start)
      if _changed(place, job):
        raise InputError(
          f"the source changed while it was read; delete {home}, and give the command"
          " again"
        )
      manifest = job.manifest(place.pieces(job.kind))
      place.finish(home / store.MANIFEST, manifest)
      place.clear()
      return manifest
    except (InputError, FileExistsError):
      if (home / store.MANIFEST).exists():  # by a command on another machine
        return _whole(place, job)
      if not any(name.endswith(".bin") for name in files.sizes(home)):
        place.abandon()
      raise


def _whole(place: folder.Folder, job: Job) -> dict[str, Any]:
  """The manifest of a finished store, if it is the job's."""
  manifest = store.read_manifest(place.home, job.kind)
  want = json.loads(json.dumps(job.made_of()))
  for name, value in want.items():
    if manifest.get(name) != value:
      raise InputError(
        f"--to {place.home} holds a store of another {name}:"
        f" {manifest.get(name)!r:.60}, not {value!r:.60}; take another folder"
      )
  place.clear()
  return manifest


@contextlib.contextmanager
def _held(place: folder.Folder, job: Job) -> Iterator[int]:
  """Begins or takes up a store; no other command of this machine works on it meanwhile.

  Yields:
    A file descriptor that holds the lock. Workers inherit it: as long as one is left,
    the folder is taken.
  """
  home = place.home
  path = home / folder.ABOUT
  if not path.exists():
    if home.is_file() or (home.exists() and {p.name for p in home.iterdir()} - _FIRST):
      raise InputError(f"--to {home} holds something else than a store; take another")
    home.mkdir(parents=True, exist_ok=True)
    files.write_json(path, job.about())
  if name := _changed(place, job):
    raise InputError(
      f"--to {home} holds an unfinished store of another {name}; give the command that"
      " began it, or take another folder"
    )
  place.here.mkdir(parents=True, exist_ok=True)
  with (place.here / folder.LOCK).open("a") as file:
    until = time.monotonic() + 30.0  # workers of a killed command are about to end
    while True:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
      except OSError:
        if time.monotonic() > until:
          raise InputError(f"another command works on --to {home}") from None
        time.sleep(0.1)
    job.prepare(home)
    yield file.fileno()


_FIRST = {f"{folder.ABOUT}.partial", folder.LOCK}  # of a cut-off begin


def _changed(place: folder.Folder, job: Job) -> str | None:
  """What the store in a folder is made of, if it is not what the job now says."""
  found = files.read_json(place.home / folder.ABOUT)
  about = json.loads(json.dumps(job.about()))
  differ = [name for name, value in about.items() if found.get(name) != value]
  return next(("source" if n in ("paths", "stamps") else n for n in differ), None)


def _start(lock: int, words: Sequence[str], log: pathlib.Path) -> subprocess.Popen:
  with log.open("ab") as out:
    return subprocess.Popen(
      [*processes.wrapped(os.sched_getaffinity(0)), *words],
      stdin=subprocess.DEVNULL,
      stdout=out,
      stderr=out,
      pass_fds=(lock,),
      start_new_session=True,  # a signal of the terminal is for the command
    )


def _run(
  place: folder.Folder, phase: str, job: Job, num_workers: int, start: Start
) -> None:
  """Runs the workers of a phase to their end.

  Raises:
    InputError: a worker's, or that one was killed.
  """
  command = ["env", *_ENVIRONMENT, sys.executable, "-m", "gen_jax.data.tokens.worker"]
  command += [str(place.home), phase, str(num_workers)]
  place.forget_workers()
  workers, logs = [], [place.log(phase, i, "txt") for i in range(num_workers)]
  try:
    for i, log in enumerate(logs):
      workers.append(start([*command, str(i)], log))
    _watch(place, list(zip(workers, logs, strict=True)), phase, job)
  finally:
    processes.stop(workers)


def _watch(place: folder.Folder, at_work: list, phase: str, job: Job) -> None:
  # Bytes of the source in pieces that an earlier command has made, about.
  before = len(place.done(phase)) * job.shard_bytes
  total, logs = job.num_bytes(), [log.with_suffix(".json") for _, log in at_work]
  began = said = time.monotonic()
  while at_work:
    time.sleep(0.05)
    for worker, log in [pair for pair in at_work if pair[0].poll() is not None]:
      at_work.remove((worker, log))
      if worker.poll():
        raise _failed(worker.poll(), log)
    now = time.monotonic()
    if now - said > _EVERY_SECS and (found := [x for x in logs if x.exists()]):
      said, told = now, [files.read_json(path) for path in found]
      _say(phase, told, now - began, total - before)


def _say(phase: str, told: Sequence[dict], secs: float, total: int) -> None:
  sums = (sum(one[what] for one in told) for what in ("tokens", "documents", "bytes"))
  num_tokens, num_documents, num_bytes = sums
  words = [f"{num_documents:,} {'images' if phase == 'images' else 'documents'}"]
  if phase == "images":
    words.append(f"{num_documents / secs:,.0f} a second")
  if phase == "tokens":
    words = [f"{num_tokens:,} tokens", f"{num_tokens / secs:,.0f} a second", *words]
  if num_bytes and total > num_bytes:
    left = int(secs / num_bytes * (total - num_bytes))
    words.append(f"ETA {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}")
  what = {"keys": "comparing", "tokens": "tokenising", "images": "packing"}[phase]
  print(f"{what}: {', '.join(words)}", file=sys.stderr, flush=True)


def _failed(code: int, log: pathlib.Path) -> Exception:
  text = log.read_bytes().decode("utf-8", "replace") if log.exists() else ""
  said = files.lines(text.strip())
  if code == 2 and said:
    return InputError(said[-1])
  if code > 0 and said:
    return RuntimeError("\n".join(said[-20:]))
  what = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
  return InputError(
    f"a worker {what}; is there enough memory? Give the same command again, with fewer"
    " --workers"
  )
