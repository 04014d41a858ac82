"""`gen-jax sweep EXPERIMENT`: runs the arms that are missing and prints the table."""

from __future__ import annotations

import collections
import pathlib
import sys

from gen_jax.cli import flags
from gen_jax.errors import InputError
from gen_jax.sweeps import ledger, sweep

_RUN = (sys.executable, "-m", "gen_jax.cli.main")
TRAIN, TOGETHER = (*_RUN, "train"), (*_RUN, "together")  # an arm's process, a group's


def add_arguments(parser) -> None:
  """See `gen-jax sweep --help`."""
  add = parser.add_argument
  add("experiment", action=flags.LocalPath, help="a folder with a sweep.py")
  add("--list", action="store_true", help="show the arms and what has come of them")
  add("--jobs", type=int, default=1, help="arms at a time; they share the cores")
  add(
    "--together",
    choices=("map", "vmap", "turn", "no"),
    help="how arms that differ in numbers and seeds alone share a process: map (to the"
    " bit what they do alone), vmap (to rounding), turn (one after another), or no;"
    " by default a few steps are measured, and what is chosen is said",
  )
  add("--to", action=flags.LocalPath, help="the arms' workdirs; runs/NAME by default")
  add(
    "--record",
    action="store_true",
    help="write results.json, its table and figure (every arm must be done)",
  )
  parser.epilog = (
    "The same command resumes: an arm that has finished or diverged is never run\n"
    "again, also when more arms are added. Exit code 75 while any is missing or failed."
  )


def load(args) -> sweep.Sweep:
  """The experiment; raises InputError for a number of --jobs that cannot be."""
  flags.check_processes(args.jobs, "--jobs")
  return sweep.load(args.experiment)


def run(args) -> dict:
  """Runs, lists or records."""
  loaded = load(args)
  home = args.to or pathlib.Path("runs") / loaded.folder.absolute().name
  if not args.list and not args.record:
    groups = () if args.together == "no" else TOGETHER
    ran = loaded.run(home, TRAIN, args.jobs, groups, args.together)
    for number, (arm, state) in enumerate(ran, 1):
      print(f"{number}: {arm.name}: {_words(state)}", flush=True)
  states = loaded.states(home)
  counts = collections.Counter(state["status"] for _, state in states)
  if args.list:
    for arm, state in states:
      print(f"{arm.name}: {_words(state)}")
  done = sum(counts[status] for status in ledger.DONE)
  print(f"{len(states)} arms: " + ", ".join(f"{n} {s}" for s, n in counts.items()))
  found = loaded.ledger(home) if done else {"arms": []}
  if any(arm["status"] == "finished" for arm in found["arms"]):
    print(f"\n{ledger.table(found)}")
  if args.record:
    if done < len(states):
      left = len(states) - done
      raise InputError(f"{left} arms are not done; run the sweep before --record")
    loaded.record(found)
    print(f"\nrecorded in {loaded.folder / sweep.RESULTS}")
  reason = "finished" if done == len(states) or args.list else "interrupted"
  return {"experiment": str(loaded.folder), "arms": counts, "reason": reason}


def _words(state) -> str:
  words = state["status"]
  if "secs" in state:
    words += f" after {state['secs']:.0f} s"
  return f"{words} ({state['line']})" if state.get("line") else words
