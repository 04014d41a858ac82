"""Fully sharded training steps beside MaxText's, as a table.

    python experiments/sharding/run.py                  # all; writes README.md
    python experiments/sharding/run.py --only gpt-2     # one of them, the rest kept

Each is a command, `gen-jax plan ... --json`; what it said is kept in results.json.
"""

import argparse
import json
import math
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

HERE = pathlib.Path(__file__).parent
GIB = 2**30


class Step(NamedTuple):
  """A command, and what MaxText 0.2.5 makes of the same step.

  Attributes:
    words: of the plan.
    num_chips: that weights lie over.
    peak: GiB, XLA's, of its own ahead-of-time compile; None where there is none.
    exchanged: GiB a step by kind, whole arrays times the trips of their loops.
  """

  words: str
  num_chips: int
  peak: float | None
  exchanged: dict[str, float]


def step(
  model: str,
  topology: str,
  rows: int,
  length: int,
  peak: float | None,
  exchanged: dict,
  tensor: int = 1,
  context: int = 1,
) -> Step:
  """Packed rows, all recomputed, weights over all chips.

  `tensor` of them have a part of each weight, or `context` of each row.
  """
  num_chips = math.prod(map(int, re.findall(r"\d+", topology.partition(":")[2])))
  values = {
    "data.name": "packed_text",
    "data.length": length,
    "data.batch_size": num_chips * rows // context,
    "task.model.max_length": length,
    "task.model.remat": "full",
    "task.model.scan_layers": "true",
    "task.model.attention_impl": "splash",
    "task.model.head_chunk": 2048 * context // rows,  # a chip's logits at once: 2,048
    "task.model.dtype": "bfloat16",
    "train.num_microbatches": 1,
    "train.ema_decay": "none",
    "mesh.data": 1,
    "mesh.fsdp": -1,
    "mesh.tensor": tensor,
    "mesh.context": context,
    "mesh.rules": "fsdp_tensor",
  }
  settings = " ".join(f"--config.{key}={value}" for key, value in values.items())
  words = f"--config configs/lm/{model} --topology {topology} {settings}"
  return Step(words, num_chips, peak, exchanged)


def summed(gathered: float, reduced: float) -> dict[str, float]:
  """Weights gathered, gradients summed everywhere; GiB."""
  return {"all-gather": gathered, "all-reduce": reduced}


PASSED = {"all-gather": 9.6, "collective-permute": 27.9}  # weights go round a ring
# By model, topology, and sequences a chip x length.
STEPS = {
  "LLaMA-2 7B, v5e:16x16, 1x2048": step(
    "llama.py:7b", "v5e:16x16", 1, 2048, 1.88, summed(24.4, 12.3)
  ),
  "LLaMA-2 7B, v5p:2x4x4, 1x2048": step(
    "llama.py:7b", "v5p:2x4x4", 1, 2048, 4.78, PASSED
  ),
  "LLaMA-2 7B, v5p:2x4x4, 4x2048": step(
    "llama.py:7b", "v5p:2x4x4", 4, 2048, 7.65, PASSED
  ),
  "LLaMA-2 7B, v5p:4x4x4, 1x2048, tensor=4": step(
    "llama.py:7b", "v5p:4x4x4", 1, 2048, None, {}, tensor=4
  ),
  "LLaMA-2 7B, v5e:16x16, 1x2048, tensor=4": step(
    "llama.py:7b", "v5e:16x16", 1, 2048, None, {}, tensor=4
  ),
  "LLaMA-2 7B, v5p:4x4x4, 1/4x32768, context=4": step(
    "llama.py:7b", "v5p:4x4x4", 1, 32768, None, {}, context=4
  ),
  "LLaMA-2 70B, v5p:4x4x8, 1x2048": step(
    "llama.py:2-70b", "v5p:4x4x8", 1, 2048, 13.71, summed(255, 128)
  ),
  "LLaMA-2 70B, v5p:4x4x8, 2x4096": step(
    "llama.py:2-70b", "v5p:4x4x8", 2, 4096, 23.76, summed(255, 128)
  ),
  "GPT-3 175B, v5p:8x8x8, 1x2048": step(
    "gpt3.py:175b", "v5p:8x8x8", 1, 2048, 15.71, summed(650, 327)
  ),
  "GPT-2 124M, v5e:2x4, 16x1024": step("gpt2.py:124m", "v5e:2x4", 16, 1024, 3.72, {}),
}


def compile_step(words: str) -> dict:
  """Runs one plan; returns what the table needs of what it said."""
  command = [sys.executable, "-m", "gen_jax.cli.main", "plan", *words.split(), "--json"]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    return {"error": done.stderr.strip().splitlines()[-1]}
  found = json.loads(done.stdout.splitlines()[-1])
  sums: dict[str, float] = {}
  for one in found["collectives"]:
    sums[one["kind"]] = sums.get(one["kind"], 0.0) + one["bytes"]
  kept = ("peak_hbm_bytes", "mfu_bound", "bound_by", "step_secs_bound", "bounds_secs")
  sent = sum(one["wire_bytes"] for one in found["collectives"])
  return {**{key: found[key] for key in kept}, "collectives": sums, "sent": sent}


def sent(sums: dict[str, float], num_chips: int) -> float:
  """What a chip sends round a ring: all but its own piece, twice for an all-reduce."""
  ring = (num_chips - 1) / num_chips
  per_byte = {"collective-permute": 1.0, "all-reduce": 2.0 * ring}
  return sum(size * per_byte.get(kind, ring) for kind, size in sums.items())


def cell(sums: dict[str, float], total: float) -> str:
  """Each kind's whole arrays and what a chip sends of them, GiB."""
  kinds = ", ".join(f"{kind} {size:.1f}" for kind, size in sums.items() if size > 0.05)
  return f"{kinds}: sent {total:.1f}" if kinds else ""


def row(name: str, found: dict | None) -> str:
  """One line of the table."""
  _, num_chips, peak, theirs = STEPS[name]
  peak = "" if peak is None else peak
  other = cell(theirs, sent(theirs, num_chips))
  if found is None or "error" in found:
    what = "not run" if found is None else found["error"]
    return f"| {name} | {what} | {peak} | | {other} | |"
  sums = {kind: size / GIB for kind, size in found["collectives"].items()}
  ours = cell(sums, found["sent"] / GIB)
  bound = f"{found['mfu_bound']:.0%}, {found['bound_by']}"
  own = f"{found['peak_hbm_bytes'] / GIB:.2f}"
  return f"| {name} | {own} | {peak} | {ours} | {other} | {bound} |"


def main() -> None:
  """Compiles what is asked for and writes the table into README.md."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--only", help="steps in whose name this occurs")
  args = parser.parse_args()
  kept = HERE / "results.json"
  results = json.loads(kept.read_text()) if kept.exists() else {}
  for name in STEPS:
    if not args.only or args.only.lower() in name.lower():
      results[name] = compile_step(STEPS[name].words)
      kept.write_text(json.dumps(results, indent=1) + "\n")
  lines = [
    "| step, sequences a chip x length | peak GiB | MaxText | GiB exchanged | MaxText |"
    " MFU at best |",
    "|---|---|---|---|---|---|",
    *(row(name, results.get(name)) for name in STEPS),
  ]
  readme = HERE / "README.md"
  table = "<!-- table -->\n" + "\n".join(lines) + "\n<!-- end -->"
  text = re.sub(
    r"<!-- table -->.*<!-- end -->", lambda _: table, readme.read_text(), flags=re.S
  )
  readme.write_text(text)


if __name__ == "__main__":
  main()
