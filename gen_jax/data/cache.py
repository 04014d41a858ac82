"""Tokenised text, kept on disk under a key of everything that it depends on.

A stream is made once and mapped into memory from then on. The folder is GEN_JAX_CACHE,
else gen_jax in XDG_CACHE_HOME, else ~/.cache/gen_jax; it may be deleted at any time.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence

import numpy as np

from gen_jax.data import sources, tokenizers

_FORMAT = 1  # of the files and of how documents become ids
_CHUNK = 1024  # documents tokenised at once

# Documents to the ids of each, without bos and eos; its repr is part of the key.
Encode = Callable[[tokenizers.Tokenizer, Sequence[str]], list[list[int]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
  """Documents one after another.

  Attributes:
    ids: uint16 or int32 [N], each document as bos, text, eos; where one token is both,
      the next document's bos is this one's eos.
    starts: int64 [number of documents], the place of each one's first token, rising.
  """

  ids: np.ndarray
  starts: np.ndarray


def plain(tokenizer: tokenizers.Tokenizer, documents: Sequence[str]) -> list[list[int]]:
  """The text of each document."""
  return tokenizer.encode_batch(documents)


def tokenize(
  documents: Sequence[str], tokenizer: tokenizers.Tokenizer, encode: Encode = plain
) -> Stream:
  """The stream of the documents; those without any token are left out."""
  bos, eos = tokenizer.bos, tokenizer.eos
  before = [] if bos is None else [bos]
  after = [] if eos in (None, bos) else [eos]
  dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
  pieces, sizes = [np.zeros(0, dtype)], []
  for first in range(0, len(documents), _CHUNK):
    last = min(first + _CHUNK, len(documents))
    for ids in encode(tokenizer, [documents[i] for i in range(first, last)]):
      pieces.append(np.array([*before, *ids, *after], dtype))
      sizes.append(len(pieces[-1]))
  sizes = np.array(sizes, np.int64)
  starts = np.cumsum(sizes) - sizes
  return Stream(np.concatenate(pieces), starts[sizes > 0])


def _home() -> pathlib.Path:
  own = os.environ.get("GEN_JAX_CACHE")
  shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(own or f"{shared}/gen_jax").expanduser() / "tokens"


def key(
  source: sources.TextSource,
  split: str,
  tokenizer: tokenizers.Tokenizer,
  encode: Encode = plain,
) -> str:
  """A hash of the tokenizer's files, the source, its files and the split."""
  how = "plain" if encode is plain else repr(encode)
  parts = (_FORMAT, tokenizer.fingerprint, repr(source), source.identity(), split, how)
  return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _read(folder: pathlib.Path) -> Stream | None:
  """The stream in a folder, or None if it is not there or damaged."""
  try:
    stream = Stream(
      np.load(folder / "ids.npy", mmap_mode="r"), np.load(folder / "starts.npy")
    )
  except (OSError, ValueError, EOFError):
    return None
  ids, starts = stream.ids, stream.starts
  rising = starts.ndim == 1 and (np.diff(starts, append=len(ids)) > 0).all()
  return stream if ids.ndim == 1 and rising else None


def _write(folder: pathlib.Path, stream: Stream) -> None:
  """Writes a stream, whole or not at all; whoever comes first, wins."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  partial = pathlib.Path(tempfile.mkdtemp(prefix="partial_", dir=folder.parent))
  try:
    np.save(partial / "ids.npy", stream.ids)
    np.save(partial / "starts.npy", stream.starts)
    partial.rename(folder)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def stream(
  source: sources.TextSource,
  split: str,
  tokenizer: tokenizers.Tokenizer,
  encode: Encode = plain,
) -> Stream:
  """The source's documents as a stream, from the cache if they are there.

  Where the folder cannot be written to, the stream is made every time.
  """
  folder = _home() / key(source, split, tokenizer, encode)
  if (found := _read(folder)) is not None:
    return found
  made = tokenize(source.documents(split), tokenizer, encode)
  shutil.rmtree(folder, ignore_errors=True)  # damaged, if it is there
  with contextlib.suppress(OSError):
    _write(folder, made)
  return made
