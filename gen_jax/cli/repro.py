"""`gen-jax repro EXPERIMENT`: runs a recorded sweep again; is it inside its band?"""

from __future__ import annotations

import pathlib

from gen_jax.cli import flags
from gen_jax.cli import sweep as sweep_command
from gen_jax.errors import InputError
from gen_jax.sweeps import ledger, searching, sweep


def add_arguments(parser) -> None:
  """See `gen-jax repro --help`."""
  add = parser.add_argument
  add(
    "experiment", action=flags.LocalPath, help="a folder with sweep.py and results.json"
  )
  add("--smoke", action="store_true", help="only the best row, all of its seeds")
  add("--jobs", type=int, default=1, help="arms at a time; they share the cores")
  add("--to", action=flags.Path, help="the arms' workdirs; runs/NAME-repro by default")
  parser.epilog = (
    "Exit code 1 if any row lies outside the band of the recorded runs. For a search\n"
    "the best arm runs again, on its recorded seeds."
  )


def run(args) -> dict:
  """Runs again and compares."""
  flags.check_processes(args.jobs, "--jobs")
  file = sweep.file(args.experiment)
  path = file.with_name(sweep.RESULTS)
  if not path.exists():
    raise InputError(f"{path} is not there; gen-jax sweep --record writes it")
  recorded = ledger.read(path)
  if "search" in recorded:
    loaded = searching.recorded(file, recorded)
  else:
    loaded = sweep.load(file)
  if args.smoke:
    top = ledger.best(ledger.rows(recorded), recorded["metric"])
    loaded = loaded.only(top.overrides)
  home = args.to or pathlib.Path("runs") / f"{loaded.folder.absolute().name}-repro"
  how = sweep.How(sweep_command.TRAIN, args.jobs, sweep_command.TOGETHER)
  ran = loaded.run(home, how)
  for arm, state in ran:
    print(f"{arm.name}: {state['status']} after {state['secs']:.0f} s", flush=True)
  if any(s["status"] not in ledger.DONE for _, s in loaded.states(home)):
    return {"experiment": str(loaded.folder), "reason": "interrupted"}
  found = ledger.repeated(recorded, loaded.ledger(home))
  for row in found:
    where = "inside" if row.is_inside else "OUTSIDE"
    band = f"{row.band.low:.5g} to {row.band.high:.5g}"
    print(f"{row.label}: {row.mean:.5g} is {where} {band}")
  outside = [row.label for row in found if not row.is_inside]
  reason = "outside" if outside else "finished"
  return {"experiment": str(loaded.folder), "outside": outside, "reason": reason}
