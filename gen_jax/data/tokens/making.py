"""Makes a token store: several processes, killed at any moment, the same bytes.

    about.json, tokenizer/   the job; written first
    keys of all documents    only if copies are dropped
    shards, piece by piece   see `worker`
    manifest.json            written last: the store is whole

The source is noted by names, sizes and times while it is read, by the hash of its
documents in the end. A store depends on the source, the tokenizer and the options, not
on the number of processes nor on how often it was begun.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from gen_jax.data import tokenizers
from gen_jax.data.tokens import documents, duplicates, foreign, store, worker
from gen_jax.system import files
from gen_jax.types import InputError

_EVERY_SECS = 5.0  # between lines about progress
_OPTIONS = ("field", "held_out", "duplicates", "shard_bytes")


@dataclasses.dataclass(frozen=True)
class Job:
  """What a store is made of.

  Attributes:
    paths: see `documents.listed`.
    field: of JSON, Parquet and data sets, with the text.
    held_out: share of the documents that become the validation split.
    duplicates: which copies are dropped: None, 'exact' or 'near'.
    shard_bytes: of the source, in a shard.
  """

  paths: tuple[str, ...]
  tokenizer: tokenizers.Tokenizer
  field: str = "text"
  held_out: float = 0.005
  duplicates: str | None = None
  shard_bytes: int = 2**26

  def about(self) -> dict[str, Any]:
    """All that the bytes of the store depend on."""
    own = [p for p in self.paths if not p.startswith(foreign.SCHEMES)]
    return {
      "paths": [
        str(documents.file(p).resolve()) if p in own else p for p in self.paths
      ],
      "stamps": files.stamps([documents.file(path) for path in own]),
      "tokenizer": self.tokenizer.fingerprint,
      **{name: getattr(self, name) for name in _OPTIONS},
    }

  def source(self) -> list[Any]:
    """Names and sizes of the source's files, wherever they lie."""
    own = (p for p in self.paths if not p.startswith(foreign.SCHEMES))
    sizes = {path: documents.file(path).stat().st_size for path in own}
    return [
      [documents.file(p).name if p in sizes else p, sizes.get(p)] for p in self.paths
    ]


def make(home: pathlib.Path, job: Job, num_workers: int) -> dict[str, Any]:
  """Makes the store, or what is missing of it; returns its manifest.

  Raises:
    InputError: what cannot be read, or a folder that holds something else.
  """
  if (home / store.MANIFEST).exists():
    return _whole(home, job)
  documents.plan(job.paths, job.field, job.shard_bytes)  # refuses bad input early
  with _held(home, job) as lock:
    try:
      if job.duplicates:
        _drop_copies(home, job, num_workers, lock)
      _run(home, "tokens", job, num_workers, lock)
      return _finish(home, job)
    except InputError:
      if not any(home.glob("*.bin")):
        shutil.rmtree(home)  # nothing is lost
      raise


def _whole(home: pathlib.Path, job: Job) -> dict[str, Any]:
  """The manifest of a finished store, if it is the job's."""
  manifest = store.read_manifest(home)
  want = json.loads(json.dumps(_made_of(job)))
  for name, value in want.items():
    if manifest.get(name) != value:
      raise InputError(
        f"--to {home} holds a token store of another {name}:"
        f" {manifest.get(name)!r:.60}, not {value!r:.60}; take another folder"
      )
  _clear(home)
  return manifest


def _made_of(job: Job) -> dict[str, Any]:
  options = {name: getattr(job, name) for name in _OPTIONS}
  return {"source": job.source(), "tokenizer": job.tokenizer.fingerprint, **options}


@contextlib.contextmanager
def _held(home: pathlib.Path, job: Job) -> Iterator[int]:
  """Begins or takes up a store; no other command works on it meanwhile.

  Yields:
    A file descriptor that holds the lock. Workers inherit it: as long as one is left,
    the folder is taken.
  """
  about = json.loads(json.dumps(job.about()))
  path = home / store.ABOUT
  if not path.exists():
    if home.exists() and any(p for p in home.iterdir() if p.name not in _FIRST):
      raise InputError(
        f"--to {home} is not empty and holds no token store; take another"
      )
    home.mkdir(parents=True, exist_ok=True)
    job.tokenizer.save(home / store.TOKENIZER)
    files.write_json(path, about)
  found = files.read_json(path)
  for name, value in about.items():
    if found.get(name) != value:
      raise InputError(
        f"--to {home} holds an unfinished token store of another"
        f" {'source' if name in ('paths', 'stamps') else name}; give the command that"
        " began it, or take another folder"
      )
  with path.open() as file:
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


_FIRST = (store.TOKENIZER, f"{store.ABOUT}.partial")  # of a begin that was cut off


def _drop_copies(home: pathlib.Path, job: Job, num_workers: int, lock: int) -> None:
  if (home / worker.FIRSTS).exists():
    return
  _run(home, "keys", job, num_workers, lock)
  paths = sorted(home.glob("piece-*.keys.npy"))
  sizes = duplicates.mark(paths, home / worker.COPIES)
  firsts, first = {}, 0
  for path, size in zip(paths, sizes, strict=True):
    firsts[path.name.split(".")[0].removeprefix("piece-")] = first
    first += size
  files.write_json(home / worker.FIRSTS, firsts)


def _finish(home: pathlib.Path, job: Job) -> dict[str, Any]:
  splits: dict[str, list] = {split: [] for split in store.SPLITS}
  digest = hashlib.sha256()
  for path in sorted(home.glob("piece-*.json")):
    piece = files.read_sealed(path)
    digest.update(piece["source_sha256"].encode())
    for split, shard in piece["splits"].items():
      splits[split].append(shard)
  if not splits["train"]:
    raise InputError(f"no text in {job.paths[0]!r} for training; give other files")
  wide = job.tokenizer.vocab_size > 2**16
  manifest = {
    "format": store.FORMAT,
    "dtype": "int32" if wide else "uint16",
    **_made_of(job),
    "source_sha256": digest.hexdigest(),
    "num_tokens": {s: sum(x["tokens"] for x in found) for s, found in splits.items()},
    "num_documents": {
      s: sum(x["documents"] for x in found) for s, found in splits.items()
    },
    "splits": splits,
  }
  files.write_json(home / store.MANIFEST, files.sealed(manifest))
  _clear(home)
  return manifest


def _clear(home: pathlib.Path) -> None:
  """Removes what only an unfinished store needs."""
  found = [*home.glob("piece-*"), *home.glob("*.partial")]
  for path in (*found, home / worker.COPIES, home / worker.FIRSTS, home / store.ABOUT):
    path.unlink(missing_ok=True)


def _run(home: pathlib.Path, phase: str, job: Job, num_workers: int, lock: int) -> None:
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
  command = [sys.executable, "-m", "gen_jax.data.tokens.worker", str(home), phase]
  for claim in home.glob(f"*{worker.CLAIM}"):  # of a command that was killed
    claim.unlink()
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
    _watch(home, processes, phase, job)


def _watch(
  home: pathlib.Path, processes: Sequence[subprocess.Popen], phase: str, job: Job
) -> None:
  total = sum(size or 0 for _, size in job.source())
  began = said = time.monotonic()
  before = _bytes_done(home, phase, job)
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


def _bytes_done(home: pathlib.Path, phase: str, job: Job) -> int:
  """Bytes of the source in pieces that an earlier command has made, about."""
  suffix = {"keys": "*.keys.npy", "tokens": "*.json"}[phase]
  return len(list(home.glob(f"piece-{suffix}"))) * job.shard_bytes


def _say(phase: str, done: Sequence[int], secs: float, total: int) -> None:
  num_tokens, num_documents, num_bytes = done
  words = [f"{num_documents:,} documents"]
  if phase == "tokens":
    words = [f"{num_tokens:,} tokens", f"{num_tokens / secs:,.0f} a second", *words]
  if num_bytes and total > num_bytes:
    left = int(secs / num_bytes * (total - num_bytes))
    words.append(f"ETA {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}")
  what = {"keys": "comparing", "tokens": "tokenising"}[phase]
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
