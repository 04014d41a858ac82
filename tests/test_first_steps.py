"""docs/first_steps.ipynb runs from its first cell to its last."""

import pathlib

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.long
def test_first_steps(monkeypatch, tmp_path):
  """In a kernel of its own, from docs/; what its cells show is as promised."""
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.setenv("XLA_FLAGS", "")  # one device, as a reader has
  monkeypatch.setenv("MPLBACKEND", "agg")
  monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
  monkeypatch.setenv("TMPDIR", str(tmp_path))
  notebook = nbformat.read(ROOT / "docs" / "first_steps.ipynb", as_version=4)
  assert not any(cell.get("outputs") for cell in notebook.cells)
  resources = {"metadata": {"path": str(ROOT / "docs")}}
  nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
  shown = str([cell.outputs for cell in notebook.cells if cell.cell_type == "code"])
  for words in ("finished", "(8, 8, 8, 1) uint8", "bits_per_byte", "did you mean"):
    assert words in shown
