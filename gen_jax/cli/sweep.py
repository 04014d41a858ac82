"""`gen-jax sweep EXPERIMENT`: runs the arms that are missing and prints the table."""

from __future__ import annotations

import collections
import pathlib
import sys

from gen_jax.cli import engines, flags, launch
from gen_jax.errors import InputError, unknown
from gen_jax.sweeps import chips, engine, ledger, remote, search, searching, sweep

_RUN = (sys.executable, "-m", "gen_jax.cli.main")
TRAIN, TOGETHER = (*_RUN, "train"), (*_RUN, "together")  # an arm's process, a group's
PLACES = ("local", "ray", "slurm", "sky")
_SEARCH = {"arms": 40, "halving": None, "fresh": 3, "seed": 0}  # flags of --search


def add_arguments(parser) -> None:
  """See `gen-jax sweep --help`."""
  add = parser.add_argument
  add("experiment", action=flags.LocalPath, help="a folder with a sweep.py")
  add("--list", action="store_true", help="show the arms and their status")
  add(
    "--jobs",
    type=int,
    help="arms at a time; they share cores and chips. Default: one, or one for each"
    " GPU or TPU chip; on ray and slurm as many as there are",
  )
  add(
    "--together",
    choices=("map", "vmap", "turn", "no"),
    help="how arms that differ only in numbers and seeds share a process: map (bitwise"
    " equal to a run alone), vmap (equal up to rounding), turn (one after another),"
    " or no; by default a few steps are measured and the choice is printed",
  )
  add("--to", action=flags.Path, help="the arms' workdirs; runs/NAME by default")
  add(
    "--record",
    action="store_true",
    help="write results.json, its table and figure (all arms must be done)",
  )
  add(
    "--on",
    default="local",
    metavar="ENGINE",
    help="local; ray, slurm: machines that see these files at the same paths (Slurm was"
    " tried only with submitit's stand-in); sky: prints a SkyPilot task that runs the"
    " whole sweep, written from its documentation and never run",
  )
  add("--address", metavar="HOST:PORT", help="ray: its head node")
  what = "of Ray's tasks, of sbatch or submitit, of sky's resources"
  add("--option", action="append", metavar="KEY=VALUE", help=f"may be repeated: {what}")
  add("--bucket", help="sky: URL of the object store to mount as /bucket")
  how = "search the space of get_search(): tpe, halton or random"
  add("--search", metavar="METHOD", help=how)
  add("--arms", type=int, help="search: how many; a larger number adds arms (40)")
  add(
    "--halving",
    type=int,
    metavar="N",
    help="search: train all arms for 1/N² of their steps, the best 1/N of them for 1/N,"
    " the best 1/N of those to the end",
  )
  add("--fresh", type=int, help="search: number of new seeds for the best arm (3)")
  add("--seed", type=int, help="search: its random seed (0)")
  parser.epilog = (
    "The same command resumes: an arm that has finished or diverged never runs again,\n"
    "even if arms are added. Exit code 75 while any arm is missing or failed."
  )


def run(args) -> dict:
  """Runs, lists or records."""
  _check(args)
  name = args.experiment.absolute().name
  if args.on == "sky":
    return _sky(args, name)
  if args.on == "local":
    if args.jobs is None:
      args.jobs = max(len(chips.here().names), 1)
    flags.check_processes(args.jobs, "--jobs")
  elif args.jobs is not None and args.jobs < 1:
    raise InputError(f"--jobs {args.jobs} must be at least 1")
  if args.search:
    return _search(args, name)
  loaded = sweep.load(args.experiment)
  home = args.to or pathlib.Path("runs") / name
  if not args.list and not args.record:
    _follow(loaded.run(home, _how(args, home, len(loaded.arms))))
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
    _record(loaded.folder, found, loaded.x_axis)
  reason = "finished" if done == len(states) or args.list else "interrupted"
  return {"experiment": str(loaded.folder), "arms": counts, "reason": reason}


def _check(args) -> None:
  """Raises InputError for flags without effect."""
  if args.on not in PLACES:
    raise unknown("engine (--on)", args.on, PLACES)
  if args.together and (args.on != "local" or args.search == "tpe"):
    raise InputError(
      "--together needs --on local, and no --search tpe, which learns from arm to arm"
    )
  wanted = {"address": ("ray",), "option": PLACES[1:], "bucket": ("sky",)}
  flags.check_engine(args, wanted)
  if not args.search and (idle := flags.given(args, _SEARCH)):
    raise InputError(f"--{next(iter(idle))} needs --search METHOD")
  if args.search and args.search not in search.METHODS:
    raise unknown("method (--search)", args.search, search.METHODS)
  if args.on != "local" and (args.list or args.record):
    raise InputError(f"--on {args.on} runs arms; --list and --record run none")
  if args.on == "ray":
    remote.probe(args.address)  # before all that takes long


def _place(args, home: pathlib.Path) -> engine.Place:
  if args.on == "ray":
    return remote.Ray(args.address, remote.options(args.option or ()))
  if args.on == "slurm":
    return remote.Slurm(home, remote.options(args.option or ()))
  return engine.Local()


def _how(args, home: pathlib.Path, num_arms: int) -> sweep.How:
  is_apart = args.together == "no" or args.on != "local" or args.search == "tpe"
  groups = () if is_apart else TOGETHER
  place = _place(args, home)
  return sweep.How(TRAIN, args.jobs or num_arms, groups, args.together, place)


def _follow(ran) -> None:
  for number, (arm, state) in enumerate(ran, 1):
    print(f"{number}: {arm.name}: {_words(state)}", flush=True)


def _record(folder: pathlib.Path, *found) -> None:
  sweep.record(folder, *found)
  print(f"\nrecorded in {folder / sweep.RESULTS}")


def _search(args, name: str) -> dict:
  """Searches, lists or records."""
  given = {**_SEARCH, **flags.given(args, _SEARCH)}
  loaded = searching.load(
    args.experiment,
    method=args.search,
    num=given["arms"],
    factor=given["halving"],
    num_fresh=given["fresh"],
    seed=given["seed"],
  )
  tag = f"{name}-{args.search}"
  tag += f"-halving{loaded.factor}" if loaded.factor else ""
  home = args.to or pathlib.Path("runs") / tag
  if not args.list and not args.record:
    _follow(loaded.run(home, _how(args, home, loaded.num)))
  entries = loaded.entries(home)
  for line in loaded.lines(entries, None if args.list else 10):
    print(line)
  best = loaded.best(entries)
  print(f"{len(entries)} of {loaded.num} arms tried" + ("" if best else ", not done"))
  done = best is not None and not loaded.missing(home, best)
  if done:
    found = loaded.ledger(home)
    print(f"\n{ledger.table(found)}")
  if args.record:
    if not done:
      raise InputError("the search is not done; run it before --record")
    _record(loaded.folder, found)
  reason = "finished" if done or args.list else "interrupted"
  return {"experiment": str(loaded.folder), "arms": len(entries), "reason": reason}


def _sky(args, name: str) -> dict:
  """Prints the task and the command that run this sweep on a machine of a cloud."""
  if not args.bucket:
    raise InputError(
      "--on sky needs --bucket gs://... or s3://..., where the runs outlive the machine"
    )
  words = ["sweep", str(args.experiment), "--to", f"/bucket/{name}"]
  for flag, value in flags.given(args, ("jobs", "search", *_SEARCH)).items():
    words += [f"--{flag}", str(value)]
  plain = "".join(c if c.isalnum() else "-" for c in name).strip("-") or "sweep"
  job = engines.Job(
    words, name=plain, bucket=args.bucket, option=args.option or (), scratch="."
  )
  return {**launch.show(engines.sky(job)), "reason": "finished"}


def _words(state) -> str:
  words = state["status"]
  if "secs" in state:
    words += f" after {state['secs']:.0f} s"
  return f"{words} ({state['line']})" if state.get("line") else words
