"""Plans of published models on the slices they would train on, as a table.

    python experiments/plans/run.py                 # all of them; writes README.md
    python experiments/plans/run.py --only gpt2     # one of them, the rest kept

Each plan is a command of its own, `gen-jax plan ... --json`; what it said is kept in
results.json beside this file, so that the table can be written without compiling.
"""

import argparse
import json
import pathlib
import re
import resource
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
GIB = 2**30
FSDP = "--config.mesh.data=1 --config.mesh.fsdp=-1"


def step(config: str, topology: str, microbatches: int, *rest: str) -> str:
  """The words of a plan."""
  batches = f"--config.train.num_microbatches={microbatches}"
  return " ".join([f"--quick --config {config} --topology {topology} {batches}", *rest])


FULL = "--config.task.model.remat=full"
UNET_FULL = "--config.task.network.remat=full"
PLANS = {
  "gpt2": step("configs/lm/gpt2.py:124m", "v5e:2x4", 6, FSDP),
  "llama-7b": step("configs/lm/llama.py:7b", "v5p:4x4x4", 8),
  "llama-7b-v5e": step("configs/lm/llama.py:7b", "v5e:16x16", 8, FULL),
  "llama-2-70b": step("configs/lm/llama.py:2-70b", "v5p:8x8x8", 2, FULL),
  "gpt3-175b-32": step("configs/lm/gpt3.py:175b", "v5p:2x4x4", 48, FULL),
  "gpt3-175b-64": step("configs/lm/gpt3.py:175b", "v5p:4x4x4", 24, FULL),
  "gpt3-175b-tpu7x-16": step("configs/lm/gpt3.py:175b", "tpu7x:2x2x4", 48, FULL),
  "gpt3-175b-tpu7x-32": step("configs/lm/gpt3.py:175b", "tpu7x:2x4x4", 24, FULL),
  "stable-diffusion": step(
    *("configs/diffusion/stable_diffusion.py:v1", "v5e:4x4", 32), *(FSDP, UNET_FULL)
  ),
  "ddpm": step("configs/diffusion/ddpm_cifar10.py", "v5e:2x2", 1),
}


def compile_plan(words: str) -> dict:
  """Runs one plan; returns what it said, and processor seconds, busy machine or not."""
  command = [sys.executable, "-m", "gen_jax.cli.main", "plan", *words.split(), "--json"]
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  secs = round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)
  if done.returncode:
    return {"secs": secs, "error": done.stderr.strip().splitlines()[-1]}
  found = json.loads(done.stdout.splitlines()[-1])
  found = {k: v for k, v in found.items() if k not in ("sharding", "params_by_module")}
  return {"secs": secs, **found}


def row(name: str, found: dict) -> str:
  """One line of the table."""
  if "error" in found:
    what = found["error"].removeprefix("gen-jax: error: ")
    return f"| {name} | {found['secs']:.0f} s | {what} |||||||"
  exchanged = {}
  for c in found["collectives"]:
    exchanged[c["kind"]] = exchanged.get(c["kind"], 0.0) + c["bytes"]
  listed = ", ".join(f"{k} {v / GIB:.1f}" for k, v in exchanged.items() if v > GIB / 20)
  cells = [
    name,
    f"{found['secs']:.0f} s",
    f"{found['params'] / 1e6:,.1f} M",
    f"{found['peak_hbm_bytes'] / GIB:.2f} / {found['hbm_capacity_bytes'] / GIB:.2f}",
    f"{found['hardware_flops'] / found['matrix_flops'] - 1:+.1%}",
    f"{found['step_secs_bound'] * 1e3:,.0f} ms, {found['bound_by']}",
    f"{found['step_secs_serial'] * 1e3:,.0f} ms",
    f"{found.get('mfu_causal_bound', found['mfu_bound']):.0%}",
    listed or "none",
  ]
  return f"| {' | '.join(cells)} |"


def table(results: dict[str, dict]) -> str:
  """The table and the commands behind it, as Markdown."""
  head = (
    "plan | processor time | parameters | peak / HBM a device, GiB | FLOPs: compiled"
    " over traced | step at best | if nothing overlaps | MFU at best | collectives of a"
    " device, GiB a step"
  )
  lines = [f"| {head} |", "|---" * (head.count("|") + 1) + "|"]
  lines += [row(name, results[name]) for name in PLANS if name in results]
  lines += ["", "```"]
  lines += [f"# {name}\ngen-jax plan {PLANS[name]}" for name in PLANS]
  return "\n".join([*lines, "```"])


def main() -> None:
  """Compiles what is asked for and writes README.md anew."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--only", nargs="*", choices=PLANS, default=list(PLANS))
  wanted = parser.parse_args().only
  kept = HERE / "results.json"
  results = json.loads(kept.read_text()) if kept.exists() else {}
  for name in wanted:
    results[name] = compile_plan(PLANS[name])
    print(row(name, results[name]), flush=True)
    kept.write_text(json.dumps(results, indent=1) + "\n")
  page = HERE / "README.md"
  marks = "<!-- table -->", "<!-- end -->"
  new = f"{marks[0]}\n{table(results)}\n{marks[1]}"
  pattern = f"{marks[0]}.*{marks[1]}"
  page.write_text(re.sub(pattern, lambda _: new, page.read_text(), flags=re.S))


if __name__ == "__main__":
  main()
