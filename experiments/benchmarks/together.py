"""Arms of a sweep in one process against one after another: seconds of whole commands.

    python experiments/benchmarks/together.py            # writes the table of README.md

Each row is a sweep over the learning rate, run by `gen-jax sweep` in an empty folder,
with `--together no` and as it is by default, in turn; medians. Programs are compiled
before (the cache between commands), so that starts are what a second sweep sees.
"""

import json
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

HERE = pathlib.Path(__file__).parent
SWEEP = '''"""Seconds."""
from gen_jax.sweeps import fixed, product, values
CONFIG, METRIC = {config!r}, "validation/loss"
def get_sweep():
  rates = [2.0 ** -(6 + k / 8) for k in range({arms})]
  return product(fixed({how}), values("optimizer.learning_rate.peak", rates))
'''


class Row(NamedTuple):
  """A sweep: its config, arms and steps, and how often each way is timed."""

  config: str
  arms: int
  steps: int
  jobs: int
  times: tuple[int, int]  # alone, together


ROWS = (
  Row("configs/lm/pydoc.py:smoke", 16, 200, 1, (2, 3)),
  Row("configs/lm/pydoc.py:smoke", 16, 2000, 1, (1, 2)),
  Row("configs/lm/shakespeare.py:cpu", 4, 60, 2, (2, 2)),
)


def seconds(row: Row, folder: pathlib.Path, *flags: str) -> tuple[float, str]:
  """Of the whole command; and what the groups said of their choice."""
  home = folder / "runs"
  shutil.rmtree(home, ignore_errors=True)
  words = ["-m", "gen_jax.cli.main", "sweep", folder, "--to", home, "--jobs", row.jobs]
  began = time.perf_counter()
  subprocess.run(
    [sys.executable, *map(str, words), *flags], check=True, stdout=subprocess.DEVNULL
  )
  secs = time.perf_counter() - began
  said = [
    line
    for log in sorted(home.glob("logs/group-*"))
    for line in log.read_text().split("\n")
    if " runs takes " in line or line.startswith("in turn")
  ]
  return secs, "; ".join(dict.fromkeys(said))


def measure(row: Row) -> dict:
  """Medians of both ways, and their ratio."""
  how = {
    "train.num_steps": row.steps,
    "train.save_every": row.steps,
    "train.log_every": 50,
    "evaluators.validation.every": row.steps,
  }
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    body = SWEEP.format(config=row.config, arms=row.arms, how=how)
    (folder / "sweep.py").write_text(body)
    seconds(row, folder)  # compiles
    alone, together, said = [], [], ""
    for i in range(max(row.times)):
      if i < row.times[0]:
        alone.append(seconds(row, folder, "--together", "no")[0])
      if i < row.times[1]:
        secs, said = seconds(row, folder)
        together.append(secs)
      print(row, alone, together, said, flush=True)
  ratio = statistics.median(alone) / statistics.median(together)
  about = {"alone": alone, "together": together, "ratio": ratio, "said": said}
  return {**row._asdict(), **about}


def table(found: list[dict]) -> str:
  """A line for each sweep."""
  lines = [
    "| sweep | processes | by default | ratio | what its groups measured |",
    "|---|---|---|---|---|",
  ]
  for row in found:
    words = f"{row['arms']} arms of `{row['config']}`, {row['steps']:,} steps"
    if row["jobs"] > 1:
      words += f", {row['jobs']} at a time"
    alone, together = (
      f"{statistics.median(x):.1f} s ({min(x):.1f} to {max(x):.1f})"
      for x in (row["alone"], row["together"])
    )
    lines.append(
      f"| {words} | {alone} | {together} | {row['ratio']:.1f} | {row['said']} |"
    )
  return "\n".join(lines)


def main() -> None:
  """See the module's docstring."""
  found = [measure(row) for row in ROWS]
  (HERE / "together.json").write_text(json.dumps(found, indent=1) + "\n")
  readme = HERE / "README.md"
  text = f"<!-- together -->\n{table(found)}\n<!-- end -->"
  pattern = re.compile(r"<!-- together -->.*?<!-- end -->", re.DOTALL)
  readme.write_text(pattern.sub(lambda _: text, readme.read_text()))


if __name__ == "__main__":
  main()
