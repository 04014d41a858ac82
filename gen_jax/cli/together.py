"""`gen-jax together FILE`: runs of one structure in one process, for `sweep`."""

from __future__ import annotations

import functools

from gen_jax.cli import flags
from gen_jax.runs import together
from gen_jax.sweeps import groups


def add_arguments(parser) -> None:
  """See `gen-jax together --help`."""
  parser.add_argument(
    "file", action=flags.LocalPath, help="what `gen-jax sweep` wrote: configs, workdirs"
  )
  parser.epilog = (
    "The runs differ in seeds and in numbers that programs take as arguments.\n"
    "Each has its own workdir; the same command resumes."
  )


def run(args) -> dict:
  """Trains them; the reason is 'interrupted' if that of one is."""
  mode, runs = groups.read(args.file)
  counts: dict[str, int] = {}
  say = functools.partial(print, flush=True)
  for one, outcome in together.run(runs, mode, say):
    groups.write_ended(args.file, runs.index(one), outcome)
    counts[outcome.status] = counts.get(outcome.status, 0) + 1
    say(f"{one.directory}: {outcome.status} {outcome.line}")
  reason = "interrupted" if "interrupted" in counts else "finished"
  return {"runs": counts, "reason": reason}
