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
import json
import os
import pathlib
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from gen_jax.data.tokens import duplicates, folder, store
from gen_jax.errors import InputError
from gen_jax.system import files

_EVERY_SECS = 5.0  # between lines about progress


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
    ...

  def made_of(self) -> dict[str, Any]:
    """The part of `about` that the manifest keeps, wherever the source lies."""
    ...

  def num_bytes(self) -> int:
    """Bytes of the source, where they are known."""
    ...

  def check(self) -> None:
    """Raises InputError for a source that cannot be read."""
    ...

  def prepare(self, home: pathlib.Path) -> None:
    """Writes what workers and readers need next to the shards."""
    ...

  def manifest(self, pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The manifest, of what `folder.Folder.add` noted of each piece."""
    ...


def make(home: pathlib.Path, job: Job, num_workers: int) -> dict[str, Any]:
  """Makes the store, or what is missing of it; returns its manifest.

  Raises:
    InputError: what cannot be read, or a folder that holds something else.
  """
  place = folder.Folder(home)
  if (home / store.MANIFEST).exists():
    return _whole(place, job)
  job.check()
  with _held(place, job) as lock:
    try:
      if job.duplicates and not place.is_marked():
        _run(place, "keys", job, num_workers, lock)
        place.mark_copies(duplicates.mark)
      _run(place, job.kind, job, num_workers, lock)
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
  about, home = json.loads(json.dumps(job.about())), place.home
  path = home / folder.ABOUT
  if not path.exists():
    if home.exists() and any(p for p in home.iterdir() if p.name not in _FIRST):
      raise InputError(
        f"--to {home} is not empty and holds no unfinished store; take another"
      )
    home.mkdir(parents=True, exist_ok=True)
    job.prepare(home)
    files.write_json(path, about)
  found = files.read_json(path)
  for name, value in about.items():
    if found.get(name) != value:
      raise InputError(
        f"--to {home} holds an unfinished store of another"
        f" {'source' if name in ('paths', 'stamps') else name}; give the command that"
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
    yield file.fileno()


_FIRST = (store.TOKENIZER, f"{folder.ABOUT}.partial", folder.LOCK)  # of a cut-off begin


def _run(
  place: folder.Folder, phase: str, job: Job, num_workers: int, lock: int
) -> None:
  """Runs the workers of a phase to their end.

  Raises:
    InputError: a worker's, or that one was killed.
  """
  environment = {
    **os.environ,
    "TOKENIZERS_PARALLELISM": "false",  # a process is a core
    "RAYON_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
  }
  command = [sys.executable, "-m", "gen_jax.data.tokens.worker"]
  command += [str(place.home), phase]
  place.drop_claims()
  with contextlib.ExitStack() as stack:
    processes = []
    for _ in range(num_workers):
      words = [*command, str(num_workers), str(os.getpid())]
      process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        pass_fds=(lock,),
        start_new_session=True,  # a signal of the terminal is for the command
      )
      stack.enter_context(process)
      stack.callback(process.kill)
      processes.append(process)
    _watch(place, processes, phase, job)


def _watch(
  place: folder.Folder, processes: Sequence[subprocess.Popen], phase: str, job: Job
) -> None:
  # Bytes of the source in pieces that an earlier command has made, about.
  before = len(place.done(phase)) * job.shard_bytes
  total = job.num_bytes()
  began = said = time.monotonic()
  told = {}
  with selectors.DefaultSelector() as selector:
    for process in processes:
      selector.register(process.stdout, selectors.EVENT_READ, process)
    while selector.get_map():
      for key, _ in selector.select(timeout=1.0):
        if line := key.fileobj.readline():
          told[key.data] = files.parse_json(line, "what a worker says")
          continue
        selector.unregister(key.fileobj)
        if key.data.wait():
          raise _failed(key.data)
      now = time.monotonic()
      if now - said >= _EVERY_SECS and told:
        said = now
        done = [sum(counts) for counts in zip(*told.values(), strict=True)]
        _say(phase, done, now - began, total - before)


def _say(phase: str, done: Sequence[int], secs: float, total: int) -> None:
  num_tokens, num_documents, num_bytes = done
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


def _failed(process: subprocess.Popen) -> Exception:
  said = files.lines(process.stderr.read().decode("utf-8", "replace").strip())
  if process.returncode == 2 and said:
    return InputError(said[-1])
  if process.returncode < 0:
    return InputError(
      f"a worker was killed by signal {-process.returncode}; is there enough memory?"
      " Give the same command again, with fewer --workers"
    )
  return RuntimeError(
    "\n".join(said[-20:]) or f"a worker ended with {process.returncode}"
  )
