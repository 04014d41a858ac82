"""Arms of a sweep in one process against a process for each: seconds of whole commands.

    python experiments/benchmarks/together.py            # writes the table of README.md

Each row is a sweep over the learning rate, run by `gen-jax sweep` in an empty folder in
four ways, in turn; medians. Programs are compiled before (the cache between commands),
so that starts are what a second sweep sees.
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
from collections.abc import Sequence
from typing import NamedTuple

HERE = pathlib.Path(__file__).parent
SWEEP = '''"""Seconds."""
from gen_jax.sweeps import fixed, product, values
CONFIG, METRIC = {config!r}, "validation/loss"
def get_sweep():
  rates = [2.0 ** -(6 + k / 8) for k in range({arms})]
  return product(fixed({how}), values("optimizer.learning_rate.peak", rates))
'''


# Flags of `gen-jax sweep`; two processes have a core each.
WAYS = {
  "processes, one at a time": ("--jobs", "1", "--together", "no"),
  "two at a time": ("--jobs", "2", "--together", "no"),
  "one group": ("--jobs", "1"),
  "two groups": ("--jobs", "2"),
}


class Row(NamedTuple):
  """A sweep: its config, arms and steps, and how often it is timed."""

  config: str
  arms: int
  steps: int
  times: int


ROWS = (
  Row("configs/lm/pydoc.py:smoke", 16, 200, 3),
  Row("configs/lm/pydoc.py:smoke", 16, 2000, 1),
  Row("configs/lm/pydoc.py", 4, 100, 1),
)


def seconds(folder: pathlib.Path, flags: Sequence[str]) -> tuple[float, str]:
  """Of the whole command; and what the groups said of their choice."""
  home = folder / "runs"
  shutil.rmtree(home, ignore_errors=True)
  words = ["-m", "gen_jax.cli.main", "sweep", folder, "--to", home]
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
  """Seconds of each way, and what groups said of their choice."""
  how = {
    "train.num_steps": row.steps,
    "train.save_every": row.steps,
    "train.log_every": 50,
    "evaluators.validation.every": row.steps,
  }
  secs: dict[str, list[float]] = {way: [] for way in WAYS}
  said = {}
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    body = SWEEP.format(config=row.config, arms=row.arms, how=how)
    (folder / "sweep.py").write_text(body)
    for way in ("two groups", "one group"):
      seconds(folder, WAYS[way])  # compiles
    for _ in range(row.times):
      for way, flags in WAYS.items():
        took, said[way] = seconds(folder, flags)
        secs[way].append(took)
      print(row, secs, said, flush=True)
  return {**row._asdict(), "secs": secs, "said": said}


def table(found: list[dict]) -> str:
  """A line for each sweep."""
  first = next(iter(WAYS))
  lines = [f"| sweep | {' | '.join(WAYS)} |", "|---" * (1 + len(WAYS)) + "|"]
  for row in found:
    cells = [f"{row['arms']} arms of `{row['config']}`, {row['steps']:,} steps"]
    whole = statistics.median(row["secs"][first])
    for way in WAYS:
      x = row["secs"][way]
      ratio = f", {whole / statistics.median(x):.1f} times as fast"
      spread = f" ({min(x):.1f} to {max(x):.1f})" if len(x) > 1 else ""
      cells.append(
        f"{statistics.median(x):.1f} s{spread}{ratio if way != first else ''}"
      )
    lines.append(f"| {' | '.join(cells)} |")
  lines += ["", "What the groups measured:", ""]
  lines += [
    f"- {row['steps']:,} steps of `{row['config']}`, {way}: {row['said'][way]}"
    for row in found
    for way in ("one group", "two groups")
  ]
  return "\n".join(lines)


def main() -> None:
  """See the module's docstring."""
  path, readme = HERE / "together.json", HERE / "README.md"
  found = json.loads(path.read_text()) if path.exists() else []
  for row in ROWS:
    made = measure(row)
    found = [old for old in found if not _is_of(old, row)] + [made]
    path.write_text(json.dumps(found, indent=1) + "\n")
    text = f"<!-- together -->\n{table(found)}\n<!-- end -->"
    pattern = re.compile(r"<!-- together -->.*?<!-- end -->", re.DOTALL)
    readme.write_text(pattern.sub(lambda _, text=text: text, readme.read_text()))


def _is_of(found: dict, row: Row) -> bool:
  return (found["config"], found["steps"]) == (row.config, row.steps)


if __name__ == "__main__":
  main()
