"""The five newcomers' paths end where they want to be, each in an empty folder."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "newcomer"
# Of each: what its output says, and the files that it leaves.
ENDS = {
  "own_text.sh": (["bits_per_byte", "The statement "], ["report.html", "runs/text"]),
  "own_attention.sh": (["B - A: ", "over 2 seeds"], ["runs/sharp0", "runs/usual1"]),
  "fifty_images.sh": (["/frechet", "/nearest"], ["drawn/grid.png", "edited"]),
  "pod.sh": (["$", "gcloud compute tpus tpu-vm create pod"], ["runs/small"]),
  "notebook.sh": ([], ["first_steps.ipynb"]),
}


def test_every_script_is_run_and_told_of():
  assert ENDS.keys() == {path.name for path in FOLDER.glob("*.sh")}
  text = (FOLDER / "README.md").read_text()
  assert all(f"`{name}`" in text for name in ENDS)


def environment(folder):
  """That of a reader: this clone's `gen-jax` first, one device, a home in a folder."""
  made = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  binaries = os.path.dirname(sys.executable)
  made |= {"PATH": f"{binaries}{os.pathsep}{made['PATH']}", "PYTHONPATH": str(ROOT)}
  return made | {"JAX_PLATFORMS": "cpu", "HOME": str(folder), "MPLBACKEND": "agg"}


@pytest.mark.long
@pytest.mark.parametrize("name", ENDS)
def test_newcomer(name, tmp_path):
  words = ["sh", str(FOLDER / name)]
  if name == "notebook.sh":
    words.append(str(ROOT / "docs" / "first_steps.ipynb"))
  env = environment(tmp_path)
  run = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
  assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
  says, files = ENDS[name]
  for words in says:
    assert words in run.stdout, run.stdout[-2000:]
  for file in files:
    assert (tmp_path / file).exists()
