"""Every notebook of docs/ runs from its first cell to its last."""

import pytest

from tools import notebooks

# What the cells of each show, besides: `notebooks.execute` fails where a cell does.
SHOWN = {
  "first_steps.ipynb": (
    "finished",
    "(8, 8, 8, 1) uint8",
    "bits_per_byte",
    "did you mean",
  ),
  "own_text.ipynb": ("finished", "gzip/bits_per_byte", "in place of 120"),
  "fifty_images.ipynb": ("finished", "held-out loss"),
  "price_7b.ipynb": ("6,738,415,616 parameters", "USD", "gcloud compute tpus tpu-vm"),
  "own_attention.ipynb": ("6 arms: 6 finished", "(paired, n = 3"),
  "own_task.ipynb": ("of 359 held-out digits", "largest difference"),
}


def test_every_notebook_is_checked():
  assert SHOWN.keys() == {path.name for path in notebooks.DOCS.glob("*.ipynb")}


@pytest.mark.long
@pytest.mark.parametrize("name", SHOWN)
def test_notebook(name):
  """In a kernel of its own, from docs/; what its cells show is as promised."""
  notebook = notebooks.execute(notebooks.DOCS / name)
  shown = str([cell.outputs for cell in notebook.cells if cell.cell_type == "code"])
  for words in SHOWN[name]:
    assert words in shown


def test_a_notebook_with_outputs_is_refused(tmp_path):
  import nbformat

  cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("stream")])
  nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
  with pytest.raises(ValueError, match="clear them"):
    notebooks.execute(tmp_path / "n.ipynb")


def test_a_notebook_is_a_page_with_what_its_cells_show():
  """Colours and overwritten progress go; images become files of their own."""
  import nbformat

  v4 = nbformat.v4
  shown = [
    v4.new_output("stream", text="1%\r\x1b[31m100%\x1b[0m\n"),
    v4.new_output("stream", name="stderr", text="a warning"),
    v4.new_output("display_data", data={"image/png": "AAEC", "text/plain": "<Figure>"}),
    v4.new_output("execute_result", data={"text/plain": "'a'"}),
  ]
  cells = [v4.new_markdown_cell("# One"), v4.new_code_cell("x = 1", outputs=shown)]
  text, images = notebooks.markdown(v4.new_notebook(cells=cells), "one")
  assert images == {"one_0.png": b"\x00\x01\x02"}
  assert text == (
    "# One\n\n```python\nx = 1\n```\n\n![What the cell draws](one_0.png)\n\n"
    "```text\n100%\n'a'\n```\n"
  )
