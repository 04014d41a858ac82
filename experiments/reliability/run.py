"""`make faults`: what strangers' inputs and failing machines do to gen_jax, counted.

    python experiments/reliability/run.py [--only kills,pairs] [--trials 20] [--seed 0]
    python experiments/reliability/run.py --short    # what every commit runs

Every fault is drawn from the seed. The counts stand in results.json and README.md.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import re
import shutil
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from experiments.reliability import (  # noqa: E402
  damages,
  engine,
  fuzz,
  interruptions,
  processes,
  stories,
)

# (trials, how, the stories it needs); CI runs SHORT of them.
CAMPAIGNS = {
  "kills": (200, interruptions.kills, interruptions.KILLED),
  "damages": (300, damages.trials, damages.NEEDS),
  "disks": (
    20,
    interruptions.disks,
    ("lm", "autoencoder", "diffusion", "sampling text", "encoding"),
  ),
  "signals": (60, interruptions.signals, (*interruptions.KILLED, "two processes")),
  "pairs": (20, interruptions.pairs, ("lm",)),
  "fuzz": (10_000, fuzz.trials, ("lm",)),
}
SHORT = {"kills": 2, "damages": 6, "signals": 1, "pairs": 2, "fuzz": 200}
SHORT_STORIES = ("lm",)


def main() -> int:
  """Runs campaigns; 1 if any fault was not borne."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--only", help=f"of {', '.join(CAMPAIGNS)}; comma-separated")
  parser.add_argument("--trials", type=int, help="of each campaign")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
  parser.add_argument("--short", action="store_true", help="a minute, one model")
  parser.add_argument("--keep", action="store_true", help="keep the folder of trials")
  args = parser.parse_args()
  names = (
    args.only.split(",") if args.only else list(SHORT if args.short else CAMPAIGNS)
  )
  folder = pathlib.Path(tempfile.mkdtemp(prefix="gen_jax_faults_"))
  env = {"JAX_PLATFORMS": "cpu", "TFDS_DATA_DIR": str(folder / "tfds")}
  env |= {"GEN_JAX_CACHE": str(folder / "cache")}
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    env["JAX_COMPILATION_CACHE_DIR"] = str(folder / "jit")
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
  os.environ.update(env)
  tempfile.tempdir = str(folder)  # of what commands leave to be sent
  processes.preload()
  place = stories.Place(folder, env)
  if args.short:
    interruptions.KILLED = SHORT_STORIES
  needed = {s for name in names for s in CAMPAIGNS[name][2]}
  needed = set(SHORT_STORIES) if args.short else needed
  began = time.monotonic()
  bases = stories.make_bases(place, needed)
  print(f"unbroken runs of {', '.join(bases)}: {time.monotonic() - began:.0f} s")
  records, secs = [], {}
  for name in names:
    num, make, _ = CAMPAIGNS[name]
    num = args.trials or (SHORT[name] if args.short else num)
    began = time.monotonic()
    trials = make(place, bases, random.Random(f"{args.seed} {name}"))
    records += engine.run(name, trials, num, folder / "trials", args.jobs)
    secs[name] = time.monotonic() - began
    print(f"{name}: {num} trials in {secs[name]:.0f} s", flush=True)
  counts = collections.Counter((r.campaign, r.group, r.kind) for r in records)
  print(f"\n{engine.table(counts)}")
  bad = [record for record in records if record.kind not in engine.GOOD]
  if not args.short:
    _keep(records, secs, args.seed)
  if args.keep:
    print(f"trials that failed: {folder}")
  else:
    shutil.rmtree(folder, ignore_errors=True)
  print(f"\n{len(records)} faults, {len(bad)} not borne")
  return 1 if bad else 0


def _keep(records: list[engine.Record], secs: dict[str, float], seed: int) -> None:
  """Puts campaigns into results.json, where others stay, and all into README."""
  path, readme = HERE / "results.json", HERE / "README.md"
  kept = json.loads(path.read_text()) if path.exists() else {}
  for name, value in secs.items():
    own = [record for record in records if record.campaign == name]
    counts = collections.Counter((record.group, record.kind) for record in own)
    kept[name] = {
      "seed": seed,
      "secs": round(value),
      "counts": [[*key, count] for key, count in sorted(counts.items())],
      "not_borne": [r._asdict() for r in own if r.kind not in engine.GOOD],
    }
  path.write_text(json.dumps(kept, indent=2) + "\n")
  table = engine.table(
    {
      (name, group, kind): count
      for name in CAMPAIGNS
      for group, kind, count in kept.get(name, {}).get("counts", [])
    }
  )
  text = re.sub(
    r"(<!-- table -->\n).*(<!-- end -->)",
    lambda m: f"{m[1]}{table}\n{m[2]}",
    readme.read_text(),
    flags=re.DOTALL,
  )
  readme.write_text(text)


if __name__ == "__main__":
  sys.exit(main())
