"""Text sources that every Python brings along: nothing to download."""

import ast
import contextlib
import dataclasses
import functools
import os
import pathlib
import sys
import sysconfig
import textwrap
import zlib
from collections.abc import Iterator, Sequence

from gen_jax import ranges
from gen_jax.data import conversations


@dataclasses.dataclass(frozen=True)
class Pydoc:
  """The Python language reference that ships with every Python (pydoc_data.topics).

  Topics quote each other at length; of repeated paragraphs only the first stays, so
  that no paragraph of the validation split occurs in the training split. A tenth of
  the topics, chosen by the hash of their names, is validation.
  """

  def documents(self, split: str) -> Sequence[str]:
    from pydoc_data import topics

    seen = set()
    documents = []
    for name in sorted(topics.topics):
      paragraphs = []
      for paragraph in topics.topics[name].split("\n\n"):
        key = " ".join(paragraph.split())
        if key and key not in seen:
          seen.add(key)
          paragraphs.append(paragraph)
      is_validation = zlib.crc32(name.encode()) % 10 == 0
      if paragraphs and is_validation == (split == "validation"):
        documents.append("\n\n".join(paragraphs))
    return documents

  def identity(self) -> str:
    return sys.version


def _stdlib_files() -> list[pathlib.Path]:
  """The library's own files, without its tests, sorted.

  Folders that are left out are not entered: site-packages lies inside the library, and
  its tens of thousands of files cost minutes on a cold disk.
  """
  skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
  paths = []
  for folder, folders, names in os.walk(sysconfig.get_paths()["stdlib"]):
    folders[:] = set(folders) - skipped
    paths += [pathlib.Path(folder, name) for name in names if name.endswith(".py")]
  return sorted(paths)


def _stdlib(split: str) -> Iterator[str]:
  """The text of the library's files; a tenth of them is validation."""
  for path in _stdlib_files():
    content = path.read_bytes()
    is_validation = zlib.crc32(content) % 10 == 0
    if content and is_validation == (split == "validation"):
      with contextlib.suppress(UnicodeDecodeError):  # a few are in Latin-1
        yield content.decode()


@dataclasses.dataclass(frozen=True)
class Stdlib:
  """The Python standard library's own sources, without its tests.

  A tenth of the files, chosen by the hash of their content, is validation.
  """

  def documents(self, split: str) -> Sequence[str]:
    return list(_stdlib(split))

  def identity(self) -> str:
    return sys.version


@dataclasses.dataclass(frozen=True)
class Docstrings:
  """Functions of the Python standard library, and what their authors say they do.

  What is asked is a function without its docstring; the answer is the docstring's
  first sentence. A real task of summarising code (Iyer et al. 2016; CodeSearchNet,
  arXiv:1909.09436), split by files as `Stdlib`.

  Attributes:
    max_chars: longer functions are left out.
  """

  max_chars: ranges.Count = 600

  __post_init__ = ranges.check

  def conversations(self, split: str) -> Sequence[conversations.Messages]:
    pairs = _summaries(split).items()
    return [conversations.ask(*p) for p in pairs if len(p[0]) <= self.max_chars]

  def identity(self) -> str:
    return sys.version


@functools.cache  # parsing the library takes seconds
def _summaries(split: str) -> dict[str, str]:
  """{code: summary} of all functions that have one; of equal ones the first."""
  pairs = {}
  for text in _stdlib(split):
    for code, summary in _documented(text):
      pairs.setdefault(code, summary)
  return pairs


def _documented(text: str) -> Iterator[tuple[str, str]]:
  """(code, first sentence of the docstring) of the functions in a file."""
  lines = text.split("\n")  # as the parser counts them
  try:
    module = ast.parse(text)
  except SyntaxError:
    return
  for node in ast.walk(module):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and len(node.body) > 1:
      summary = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
      summary = summary.split(". ")[0].rstrip(".")
      first, rest = node.body[0], node.body[1:]
      if len(summary) >= 10:
        head = lines[node.lineno - 1 : first.lineno - 1]
        body = lines[rest[0].lineno - 1 : node.end_lineno]
        yield textwrap.dedent("\n".join(head + body)), summary
