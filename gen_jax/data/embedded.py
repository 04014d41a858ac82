"""Text sources that come with every Python: nothing to download."""

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

  Topics quote each other, so only the first of equal paragraphs is kept: none is in
  both splits. A tenth of the topics, by a hash of their names, is validation.
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

  Skipped folders are not entered: site-packages has tens of thousands of files, which
  take minutes on a cold disk.
  """
  skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
  paths = []
  for folder, folders, names in os.walk(sysconfig.get_paths()["stdlib"]):
    folders[:] = set(folders) - skipped
    paths += [pathlib.Path(folder, name) for name in names if name.endswith(".py")]
  return sorted(paths)


def _stdlib(split: str) -> Iterator[str]:
  """The texts of the library's files; a tenth of them is validation."""
  for path in _stdlib_files():
    content = path.read_bytes()
    is_validation = zlib.crc32(content) % 10 == 0
    if content and is_validation == (split == "validation"):
      with contextlib.suppress(UnicodeDecodeError):  # a few are in Latin-1
        yield content.decode()


@dataclasses.dataclass(frozen=True)
class Stdlib:
  """The source code of the Python standard library, without its tests.

  A tenth of the files, by a hash of their content, is validation.
  """

  def documents(self, split: str) -> Sequence[str]:
    return list(_stdlib(split))

  def identity(self) -> str:
    return sys.version


@dataclasses.dataclass(frozen=True)
class Docstrings:
  """Functions of the Python standard library and their summaries.

  The prompt is a function without its docstring, the answer the docstring's first
  sentence: code summarisation (Iyer et al. 2016; CodeSearchNet, arXiv:1909.09436),
  split by files as `Stdlib`.

  Attributes:
    max_chars: longer functions are left out.
  """

  max_chars: ranges.Count = 600

  def __post_init__(self) -> None:
    ranges.check(self)

  def conversations(self, split: str) -> Sequence[conversations.Messages]:
    pairs = _summaries(split).items()
    return [conversations.ask(*p) for p in pairs if len(p[0]) <= self.max_chars]

  def identity(self) -> str:
    return sys.version


@functools.cache  # parsing the library takes seconds
def _summaries(split: str) -> dict[str, str]:
  """{code: summary} of all functions with one; the first of equal functions."""
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
