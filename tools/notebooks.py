"""Notebooks: executed in a kernel of their own, and as pages of the site."""

import base64
import hashlib
import os
import pathlib
import re
import sys
import tempfile
from typing import Any

import nbclient
import nbformat

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")  # of terminals, and their cursors


def execute(path: pathlib.Path, timeout: int = 900) -> nbformat.NotebookNode:
  """A notebook with what its cells show, run from its folder as a reader runs it.

  Its kernel has one device, this clone, and a folder of its own for what is temporary.

  Args:
    timeout: of a cell, in seconds.

  Raises:
    nbclient.exceptions.CellExecutionError: a cell fails.
  """
  notebook = nbformat.read(path, as_version=4)
  if any(cell.get("outputs") for cell in notebook.cells):
    raise ValueError(f"{path} is committed with outputs; clear them")
  with tempfile.TemporaryDirectory() as folder:
    own = {"PYTHONPATH": str(ROOT), "IPYTHONDIR": folder, "TMPDIR": folder}
    own |= {"XLA_FLAGS": "", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    paths = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    resources = {"metadata": {"path": str(path.parent)}}
    client = nbclient.NotebookClient(notebook, timeout=timeout, resources=resources)
    client.execute(env={**os.environ, **own, "PATH": paths})
  return notebook


def kept(path: pathlib.Path, folder: pathlib.Path) -> nbformat.NotebookNode:
  """`execute`, or what it made last of the same notebook, kept in a folder."""
  digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
  file = folder / f"{path.stem}-{digest}.ipynb"
  if not file.exists():
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(execute(path), file)
  return nbformat.read(file, as_version=4)


def markdown(
  notebook: nbformat.NotebookNode, name: str
) -> tuple[str, dict[str, bytes]]:
  """A notebook as Markdown, and its images {file: PNG}; `name` begins their names."""
  parts, images = [], {}
  for cell in notebook.cells:
    if cell.cell_type == "markdown":
      parts.append(cell.source)
      continue
    parts.append(_fenced(cell.source, "python"))
    said = ""
    for output in cell.get("outputs", ()):
      data = output.get("data", {})
      if "image/png" in data:
        file = f"{name}_{len(images)}.png"
        images[file] = base64.b64decode(data["image/png"])
        parts.append(f"![What the cell draws]({file})")
      elif output.get("name") != "stderr":  # warnings, of this machine
        said += output.get("text") or f"{data.get('text/plain', '')}\n"
    if said := "\n".join(map(_shown, said.rstrip().split("\n"))):
      parts.append(_fenced(said, "text"))
  return "\n\n".join(parts) + "\n", images


def _shown(line: str) -> str:
  """A line as a terminal leaves it: what it has written over is gone."""
  return _COLOURS.sub("", line).rstrip("\r").rpartition("\r")[2]


def _fenced(text: str, language: str) -> str:
  return f"```{language}\n{text}\n```"


def titles() -> dict[str, str]:
  """{file of a notebook: its title}, in the order that they are read."""
  found = {}
  for path in sorted(DOCS.glob("*.ipynb")):
    first: Any = nbformat.read(path, as_version=4).cells[0]
    found[path.name] = first.source.partition("\n")[0].removeprefix("# ")
  return dict(sorted(found.items(), key=lambda pair: pair[0] != "first_steps.ipynb"))
