"""Text sources that every Python brings along: nothing to download."""

import contextlib
import dataclasses
import pathlib
import sys
import sysconfig
import zlib
from collections.abc import Sequence


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


@dataclasses.dataclass(frozen=True)
class Stdlib:
  """The Python standard library's own sources, without its tests.

  A tenth of the files, chosen by the hash of their content, is validation.
  """

  def documents(self, split: str) -> Sequence[str]:
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
    documents = []
    for path in sorted(root.rglob("*.py")):
      if skipped & set(path.relative_to(root).parts):
        continue
      content = path.read_bytes()
      is_validation = zlib.crc32(content) % 10 == 0
      if is_validation == (split == "validation"):
        with contextlib.suppress(UnicodeDecodeError):  # a few are in Latin-1
          documents.append(content.decode())
    return [document for document in documents if document]

  def identity(self) -> str:
    return sys.version
