"""Tokenised text, cached on disk under a hash of everything that it depends on.

Tokens are written in chunks, in constant memory, and memory-mapped afterwards. A
cache's folder holds the arrays and index.json with their hashes: damage is found on
opening, and the cache is rebuilt. A process that is killed leaves a folder with what it
has tokenised; the next one continues there.

Caches are in `tokens` of the cache folder; they may be deleted at any time.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from gen_jax.data import chat, conversations, slicing, sources, tokenizers
from gen_jax.errors import InputError
from gen_jax.system import files

_FORMAT = 4  # version of the files and of tokenisation
_CHUNK_CHARS = 2**18  # characters tokenised at once
_CHUNK_TOKENS = 2**16  # tokens of conversations written at once, about
_INDEX, _JOURNAL = "index.json", "journal.json"
_JOURNAL_SECS = 1.0  # of work that a kill may lose
_PATIENCE_SECS = 5.0  # between lines about progress


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
  """The tokens of concatenated documents.

  Attributes:
    ids: uint16 or int32 [N], per document the tokenizer's opening, the text, its end;
      if one token is both, the next document's opening is also this one's end.
    starts: int64 [number of documents], index of each one's first token, rising.
    is_answer: bool [N], tokens of answers; only for conversations.
  """

  ids: np.ndarray
  starts: np.ndarray
  is_answer: np.ndarray | None = None

  def part(self, start: int, stop: int) -> "Tokens":
    """Tokens start to stop, cut off at the end, as documents of their own.

    `starts` count from `start`; the first is 0: the rest of a document that begins
    before it is one.
    """
    inside = slice(*np.searchsorted(self.starts, (start + 1, stop)))
    starts = np.concatenate([np.zeros(1, np.int64), self.starts[inside] - start])
    return Tokens(self.ids[start:stop], starts)

  def pieces(self) -> Iterator[slice]:
    """The slice of `ids` of each document."""
    ends = [*self.starts[1:].tolist(), len(self.ids)]
    return map(slice, self.starts.tolist(), ends)


def _tokens(
  tokenizer: tokenizers.Tokenizer,
  ids: Sequence[int],
  starts: Sequence[int],
  is_answer: Sequence[bool] | None = None,
) -> Tokens:
  dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
  flags = None if is_answer is None else np.array(is_answer, bool)
  return Tokens(np.array(ids, dtype), np.array(starts, np.int64), flags)


def _batches(
  documents: Iterable[str], tokenizer: tokenizers.Tokenizer
) -> Iterator[list[slicing.Slice]]:
  """The slices of all documents, in batches of about `_CHUNK_CHARS` characters."""
  batch, size = [], 0
  for document in documents:
    for part in slicing.slices(document, tokenizer.encoding):
      if batch and size + len(part.text) > _CHUNK_CHARS:
        yield batch
        batch, size = [], 0
      batch.append(part)
      size += len(part.text) + 16  # short documents cost something too
  yield batch


# Chunks of tokens, each with where the next one begins, which may be given back.
At = Sequence[int]
Chunks = Iterator[tuple[Tokens, At]]
_BEGINNING: At = (0, 0)


def _of_documents(
  documents: Iterable[str], tokenizer: tokenizers.Tokenizer, at: At = _BEGINNING
) -> Chunks:
  """Tokens of the documents in chunks; see `tokenize`.

  Args:
    at: number of batches to skip, and whether the next document has no token yet.
  """
  before, after = tokenizer.opening, tokenizer.ends()
  num, is_new = at
  for batch in itertools.islice(_batches(documents, tokenizer), num, None):
    ids, starts = [], []
    for part, found in zip(batch, slicing.encode_batch(batch, tokenizer), strict=True):
      opening, end = before * part.is_first, after * part.is_last
      is_new |= part.is_first
      if is_new and (opening or found or end):
        starts.append(len(ids))
        is_new = False
      ids += [*opening, *found, *end]
    num += 1
    yield _tokens(tokenizer, ids, starts), (num, int(is_new))


def of_documents(
  documents: Iterable[str], tokenizer: tokenizers.Tokenizer
) -> Iterator[Tokens]:
  """`tokenize`, in chunks whose `starts` are relative to their own first token."""
  return (chunk for chunk, _ in _of_documents(documents, tokenizer))


def _of_turns(
  dialogues: Iterable[Sequence[chat.Message]],
  tokenizer: tokenizers.Tokenizer,
  at: At = _BEGINNING,
) -> Chunks:
  """Tokens of the conversations in chunks, each up to its last answer.

  Args:
    at: number of conversations to skip, and 0.
  """
  ids, starts, is_answer = [], [], []
  num, _ = at
  for messages in itertools.islice(dialogues, num, None):
    found, flags = tokenizer.encode_turns(messages)
    starts += [len(ids)] if found else []
    ids += found
    is_answer += flags
    num += 1
    if len(ids) >= _CHUNK_TOKENS:
      yield _tokens(tokenizer, ids, starts, is_answer), (num, 0)
      ids, starts, is_answer = [], [], []
  yield _tokens(tokenizer, ids, starts, is_answer), (num, 0)


def _placed(chunks: Chunks, before: int = 0) -> Chunks:
  """The chunks with starts relative to the first one, after `before` tokens."""
  for chunk, at in chunks:
    yield dataclasses.replace(chunk, starts=chunk.starts + before), at
    before += len(chunk.ids)


def _joined(chunks: Chunks) -> Tokens:
  """The chunks concatenated in memory."""
  parts = [(c.ids, c.starts, c.is_answer) for c, _ in _placed(chunks)]
  ids, starts, flags = zip(*parts, strict=True)
  is_answer = None if flags[0] is None else np.concatenate(flags)
  return Tokens(np.concatenate(ids), np.concatenate(starts), is_answer)


def tokenize(documents: Iterable[str], tokenizer: tokenizers.Tokenizer) -> Tokens:
  """Tokens of the documents, without empty documents."""
  return _joined(_of_documents(documents, tokenizer))


def _watched(chunks: Chunks) -> Chunks:
  """Yields the chunks; prints every few seconds how many tokens they have."""
  began = said = time.monotonic()
  num = 0
  for chunk, at in chunks:
    yield chunk, at
    num += len(chunk.ids)
    now = time.monotonic()
    if now - said > _PATIENCE_SECS:
      said, rate = now, num / (now - began)
      print(f"tokenising: {num:,} tokens, {rate:,.0f} a second", file=sys.stderr)


def _identity(made: Any) -> str:
  """`TextSource.identity`; InputError where users' own has none."""
  if not callable(getattr(made, "identity", None)):
    raise InputError(
      f"{sources.called(made)} has no identity(): a text that changes when the"
      " documents do"
    )
  return made.identity()


def key(
  source: sources.TextSource | conversations.ConversationSource,
  split: str,
  tokenizer: tokenizers.Tokenizer,
) -> str:
  """A hash of the tokenizer, the source, its files and the split."""
  made_of = (tokenizer.fingerprint, tokenizer.chat_template)
  parts = (_FORMAT, *made_of, repr(source), _identity(source), split)
  return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _read(folder: pathlib.Path) -> Tokens | None:
  """The tokens in a folder, or None if it does not exist.

  Raises:
    InputError: it is damaged.
  """
  if not folder.exists():
    return None
  try:
    index = files.read_json(folder / _INDEX)
    if index["name"] != folder.name:
      raise InputError(f"{_INDEX} is of another folder")
    arrays = {}
    for field, digest in index["sha256"].items():
      path = folder / f"{field}.npy"
      if files.sha256(path) != digest:
        raise InputError(f"{path.name} does not have its hash")
      arrays[field] = np.load(path, mmap_mode="r")
    return Tokens(**arrays)
  except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
    raise InputError(f"the token cache {folder} is damaged ({error})") from None


def _write_header(file: BinaryIO, dtype: np.dtype, num: int) -> None:
  """Writes the header of a .npy; its length does not depend on `num`."""
  descr = np.lib.format.dtype_to_descr(dtype)
  header = {"descr": descr, "fortran_order": False, "shape": (num,)}
  file.seek(0)
  np.lib.format.write_array_header_1_0(file, header)


class _Growing:
  """A .npy that grows; its first `num` elements are there already.

  Raises:
    ValueError: they are not.
  """

  def __init__(self, path: pathlib.Path, dtype: np.dtype, num: int = 0):
    self.dtype, self.num = dtype, num
    self.file = path.open("r+b" if num else "wb")
    _write_header(self.file, dtype, 0)
    end = self.file.tell() + num * dtype.itemsize
    if self.file.seek(0, os.SEEK_END) < end:
      raise ValueError(f"{path} is too short")
    self.file.seek(end)
    self.file.truncate()

  def append(self, array: np.ndarray) -> None:
    self.file.write(array.data)
    self.num += len(array)

  def finish(self) -> None:
    _write_header(self.file, self.dtype, self.num)
    self.file.close()


def _write(folder: pathlib.Path, name: str, chunks: Callable[[At], Chunks]) -> None:
  """Writes chunks as they arrive, then the hashes of the arrays.

  Continues what an earlier process wrote in this folder.
  """
  begin, arrays = _BEGINNING, {}
  journal = folder / _JOURNAL
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError, InputError):
    done = files.read_json(journal)
    arrays = {
      field: _Growing(folder / f"{field}.npy", np.dtype(dtype), num)
      for field, (dtype, num) in done["arrays"].items()
    }
    begin = done["at"]
  before, noted = arrays["ids"].num if "ids" in arrays else 0, time.monotonic()
  for chunk, at in _placed(_watched(chunks(begin)), before):
    for field, array in vars(chunk).items():
      if array is not None:
        if field not in arrays:
          arrays[field] = _Growing(folder / f"{field}.npy", array.dtype)
        arrays[field].append(array)
    if time.monotonic() - noted > _JOURNAL_SECS:
      for growing in arrays.values():
        growing.file.flush()
      sizes = {field: (x.dtype.str, x.num) for field, x in arrays.items()}
      files.write_json(journal, {"at": at, "arrays": sizes})
      noted = time.monotonic()
  for growing in arrays.values():
    growing.finish()
  journal.unlink(missing_ok=True)
  hashes = {field: files.sha256(folder / f"{field}.npy") for field in arrays}
  files.write_json(folder / _INDEX, {"name": name, "sha256": hashes})


@contextlib.contextmanager
def _partial(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder next to `folder`, in which only this process builds it.

  An earlier process that was stopped has left it, with its work. If another process is
  at work there, it is a new folder.
  """
  path = folder.with_name(f"partial_{folder.name}")
  path.mkdir(parents=True, exist_ok=True)
  descriptor = os.open(path, os.O_RDONLY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if not os.path.samestat(os.fstat(descriptor), path.stat()):
      raise FileNotFoundError  # it was finished meanwhile
  except OSError:
    path = pathlib.Path(tempfile.mkdtemp(prefix="partial_", dir=folder.parent))
  try:
    yield path
  except Exception:  # but not a stop
    shutil.rmtree(path, ignore_errors=True)
    raise
  else:
    shutil.rmtree(path, ignore_errors=True)
  finally:
    os.close(descriptor)


def _stored(name: str, chunks: Callable[[At], Chunks]) -> Tokens:
  """The cached tokens of that name, made if missing; of two writers the first wins.

  If the folder is not writable, they are made in memory each time.
  """
  folder, found = files.cache_folder("tokens") / name, None
  try:
    found = _read(folder)
  except InputError as error:
    print(f"{error}: rebuilding it", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
  if found is not None:
    return found
  try:
    with _partial(folder) as partial:
      _write(partial, name, chunks)
      if not folder.exists():  # another process may have made it meanwhile
        with contextlib.suppress(OSError):
          partial.rename(folder)
      if (found := _read(folder)) is not None:
        return found
  except OSError as error:
    print(f"cannot cache tokens in {folder}: {error.strerror}", file=sys.stderr)
  return _joined(_watched(chunks(_BEGINNING)))


def texts(source: sources.TextSource, split: str) -> Iterator[str]:
  """A source's documents; InputError for what is no text: users' own may give it."""
  name, found = sources.called(source), source.documents(split)
  if isinstance(found, str | bytes) or not isinstance(found, Iterable):
    raise InputError(f"{name}: documents({split!r}) must give a list of texts")
  return (files.text(text, f"a document of {name}") for text in found)


def tokens(
  source: sources.TextSource, split: str, tokenizer: tokenizers.Tokenizer
) -> Tokens:
  """Tokens of the source's documents, cached."""
  name = key(source, split, tokenizer)
  return _stored(name, lambda at: _of_documents(texts(source, split), tokenizer, at))


def tokens_of_turns(
  source: conversations.ConversationSource, split: str, tokenizer: tokenizers.Tokenizer
) -> Tokens:
  """Tokens of the source's conversations, cached."""
  name = key(source, split, tokenizer)
  return _stored(name, lambda at: _of_turns(source.conversations(split), tokenizer, at))
