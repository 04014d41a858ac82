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
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from gen_jax.data import chat, conversations, sources, tokenizers

_FORMAT = 3  # of the files and of how documents become ids
_CHUNK = 1024  # documents tokenised at once


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
  """Documents one after another.

  Attributes:
    ids: uint16 or int32 [N], each document as the tokenizer's opening, text, its end;
      where one token is both, the next document's opening is this one's end.
    starts: int64 [number of documents], the place of each one's first token, rising.
    is_answer: bool [N], of conversations: which tokens answer.
  """

  ids: np.ndarray
  starts: np.ndarray
  is_answer: np.ndarray | None = None

  def pieces(self) -> Iterator[slice]:
    """The place of each document."""
    ends = [*self.starts[1:].tolist(), len(self.ids)]
    return map(slice, self.starts.tolist(), ends)


def _joined(pieces: Iterable[Sequence[int]], tokenizer: tokenizers.Tokenizer) -> Stream:
  """The pieces one after another; empty ones leave no trace."""
  dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
  arrays = [np.array(piece, dtype) for piece in pieces]
  sizes = np.array([len(array) for array in arrays], np.int64)
  starts = np.cumsum(sizes) - sizes
  return Stream(np.concatenate([np.zeros(0, dtype), *arrays]), starts[sizes > 0])


def tokenize(documents: Sequence[str], tokenizer: tokenizers.Tokenizer) -> Stream:
  """The stream of the documents; those without any token are left out."""
  before, after = tokenizer.opening, tokenizer.ends()

  def pieces():
    for first in range(0, len(documents), _CHUNK):
      last = min(first + _CHUNK, len(documents))
      for ids in tokenizer.encode_batch([documents[i] for i in range(first, last)]):
        yield [*before, *ids, *after]

  return _joined(pieces(), tokenizer)


def tokenize_turns(
  dialogues: Sequence[Sequence[chat.Message]], tokenizer: tokenizers.Tokenizer
) -> Stream:
  """The stream of the conversations, each up to its last answer."""
  turns = [tokenizer.encode_turns(messages) for messages in dialogues]
  is_answer = np.array([flag for _, flags in turns for flag in flags], bool)
  joined = _joined((ids for ids, _ in turns), tokenizer)
  return dataclasses.replace(joined, is_answer=is_answer)


def _home() -> pathlib.Path:
  own = os.environ.get("GEN_JAX_CACHE")
  shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(own or f"{shared}/gen_jax").expanduser() / "tokens"


def key(
  source: sources.TextSource | conversations.ConversationSource,
  split: str,
  tokenizer: tokenizers.Tokenizer,
) -> str:
  """A hash of the tokenizer's files, the source, its files and the split."""
  made_of = (tokenizer.fingerprint, tokenizer.chat_template)
  parts = (_FORMAT, *made_of, repr(source), source.identity(), split)
  return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _read(folder: pathlib.Path) -> Stream | None:
  """The stream in a folder, or None if it is not there or damaged."""
  try:
    stream = Stream(
      np.load(folder / "ids.npy", mmap_mode="r"), np.load(folder / "starts.npy")
    )
    if (folder / "is_answer.npy").exists():
      flags = np.load(folder / "is_answer.npy", mmap_mode="r")
      if flags.shape != stream.ids.shape:
        return None
      stream = dataclasses.replace(stream, is_answer=flags)
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
    for name, array in vars(stream).items():
      if array is not None:
        np.save(partial / f"{name}.npy", array)
    partial.rename(folder)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _stored(name: str, make: Callable[[], Stream]) -> Stream:
  """The stream of that name, made if it is not there.

  Where the folder cannot be written to, it is made every time.
  """
  folder = _home() / name
  if (found := _read(folder)) is not None:
    return found
  made = make()
  shutil.rmtree(folder, ignore_errors=True)  # damaged, if it is there
  with contextlib.suppress(OSError):
    _write(folder, made)
  return made


def stream(
  source: sources.TextSource, split: str, tokenizer: tokenizers.Tokenizer
) -> Stream:
  """The source's documents as a stream, from the cache if they are there."""
  name = key(source, split, tokenizer)
  return _stored(name, lambda: tokenize(source.documents(split), tokenizer))


def stream_of_turns(
  source: conversations.ConversationSource, split: str, tokenizer: tokenizers.Tokenizer
) -> Stream:
  """The source's conversations as a stream, from the cache if they are there."""
  name = key(source, split, tokenizer)
  return _stored(name, lambda: tokenize_turns(source.conversations(split), tokenizer))
