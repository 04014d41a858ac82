"""Fully sharded training steps beside MaxText's, as a table.

    python experiments/sharding/run.py                  # all; writes README.md
    python experiments/sharding/run.py --only gpt2      # one of them, the rest kept

Each is a command, `gen-jax plan ... --json`; what it said is kept in results.json.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
GIB = 2**30
LLAMA, GPT3 = "configs/lm/llama.py", "configs/lm/gpt3.py"


def step(config: str, topology: str, chips: int, rows: int, length: int) -> str:
  """The words of a plan: packed rows, all recomputed, weights over all chips."""
  values = {
    "data.name": "packed_text",
    "data.length": length,
    "data.batch_size": chips * rows,
    "task.model.remat": "full",
    "task.model.scan_layers": "true",
    "task.model.attend": "splash",
    "task.model.head_chunk": 128,
    "task.model.dtype": "bfloat16",
    "train.num_microbatches": 1,
    "train.ema_decay": "none",
    "mesh.data": 1,
    "mesh.fsdp": -1,
  }
  settings = " ".join(f"--config.{key}={value}" for key, value in values.items())
  return f"--config {config} --topology {topology} {settings}"


# The words, and MaxText 0.2.5's peak in GiB and collectives in GiB a step: XLA's peak,
# whole arrays times the trips of their loops, its own ahead-of-time compile.
STEPS = {
  "LLaMA-2 7B, v5e:16x16, 1x2048": (
    step(f"{LLAMA}:7b", "v5e:16x16", 256, 1, 2048),
    (1.88, {"all-gather": 24.4, "all-reduce": 12.3}),
  ),
  "LLaMA-2 7B, v5p:2x4x4, 1x2048": (
    step(f"{LLAMA}:7b", "v5p:2x4x4", 32, 1, 2048),
    (4.78, {"all-gather": 9.6, "collective-permute": 27.9}),
  ),
  "LLaMA-2 7B, v5p:2x4x4, 4x2048": (
    step(f"{LLAMA}:7b", "v5p:2x4x4", 32, 4, 2048),
    (7.65, {"all-gather": 9.6, "collective-permute": 27.9}),
  ),
  "LLaMA-2 70B, v5p:4x4x8, 1x2048": (
    step(f"{LLAMA}:2-70b", "v5p:4x4x8", 128, 1, 2048),
    (13.71, {"all-gather": 255, "all-reduce": 128}),
  ),
  "LLaMA-2 70B, v5p:4x4x8, 2x4096": (
    step(f"{LLAMA}:2-70b", "v5p:4x4x8", 128, 2, 4096),
    (23.76, {"all-gather": 255, "all-reduce": 128}),
  ),
  "GPT-3 175B, v5p:8x8x8, 1x2048": (
    step(f"{GPT3}:175b", "v5p:8x8x8", 512, 1, 2048),
    (15.71, {"all-gather": 650, "all-reduce": 327}),
  ),
  "GPT-2 124M, v5e:2x4, 16x1024": (
    step("configs/lm/gpt2.py:124m", "v5e:2x4", 8, 16, 1024),
    (3.72, {}),
  ),
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
  kept = ("peak_hbm_bytes", "mfu_bound", "bound_by", "step_secs_bound")
  return {**{key: found[key] for key in kept}, "collectives": sums}


def exchanged(sums: dict[str, float]) -> str:
  """Each kind, and what a chip sends: an all-reduce is sent twice."""
  if not sums:
    return ""
  kinds = ", ".join(f"{kind} {size:.1f}" for kind, size in sums.items() if size > 0.05)
  sent = sum(size * (1 + (kind == "all-reduce")) for kind, size in sums.items())
  return f"{kinds}: sent {sent:.1f}"


def row(name: str, found: dict | None) -> str:
  """One line of the table."""
  peak, theirs = STEPS[name][1]
  if found is None or "error" in found:
    what = "not run" if found is None else found["error"]
    return f"| {name} | {what} | {peak} | | {exchanged(theirs)} | |"
  ours = exchanged({kind: size / GIB for kind, size in found["collectives"].items()})
  bound = f"{found['mfu_bound']:.0%}, {found['bound_by']}"
  own = f"{found['peak_hbm_bytes'] / GIB:.2f}"
  return f"| {name} | {own} | {peak} | {ours} | {exchanged(theirs)} | {bound} |"


def main() -> None:
  """Compiles what is asked for and writes the table into README.md."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--only", help="steps in whose name this occurs")
  args = parser.parse_args()
  kept = HERE / "results.json"
  results = json.loads(kept.read_text()) if kept.exists() else {}
  for name, (words, _) in STEPS.items():
    if not args.only or args.only.lower() in name.lower():
      results[name] = compile_step(words)
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
