"""`gen-jax compare A B --metric M`: the difference between runs, with an interval.

A and B are workdirs, several of one config separated by commas (its seeds), or rows of
a recorded sweep: results.json#overrides.
"""

from __future__ import annotations

import pathlib

from gen_jax.errors import InputError, unknown
from gen_jax.runs import workdir
from gen_jax.sweeps import ledger, statistics
from gen_jax.system import files
from gen_jax.train import evaluators


def add_arguments(parser) -> None:
  """See `gen-jax compare --help`."""
  what = "workdirs that differ in seed, comma-separated; or results.json#peak=0.001"
  parser.add_argument("a", metavar="A", help=what)
  parser.add_argument("b", metavar="B", help="the same")
  parser.add_argument("--metric", help="default: the ledger's; else validation/loss")


def run(args) -> dict:
  """Compares."""
  metric = args.metric or _metric(args.a) or _metric(args.b) or "validation/loss"
  a, b = (_row(text, metric) for text in (args.a, args.b))
  sign = -1.0 if evaluators.cost(metric, 1.0) < 0 else 1.0
  difference = ledger.compare(a, b)
  for name, row in (("A", a), ("B", b)):
    shown = row.interval or f"{row.mean:.4g}"
    print(f"{name}  {metric} {shown} over {len(row.values)} seeds")
  print(f"B - A: {difference}")
  low, high = difference.interval.low * sign, difference.interval.high * sign
  verdict = "B is better" if high < 0 else "A is better"
  verdict = "no difference shown" if low <= 0 <= high else verdict
  print(verdict)
  if difference.is_paired and low <= 0 <= high:
    seeds = [s for s in a.values if s in b.values]
    pairs = [[row.values[s] for s in seeds] for row in (a, b)]
    needed = statistics.seeds_needed(*pairs)
    more = f"{needed} pairs of seeds" if needed else "more than 1,000 pairs of seeds"
    print(f"a true difference of this size would need {more} to show in 4 of 5 cases")
  return {
    "metric": metric,
    "a": a.values,
    "b": b.values,
    "difference": difference.interval._asdict(),
    "p": difference.p,
    "paired": difference.is_paired,
    "verdict": verdict,
  }


def _metric(text: str) -> str | None:
  name, hash_, _ = text.partition("#")
  return ledger.read(files.path(name, "A or B"))["metric"] if hash_ else None


def _row(text: str, metric: str) -> ledger.Row:
  """The runs that a word of the command line names."""
  name, hash_, wanted = text.partition("#")
  if hash_:
    return _recorded(files.path(name, "A or B"), wanted, metric)
  values: dict = {}
  configs = []
  for part in text.split(","):
    folder = files.path(part, "A or B")
    config = workdir.read_config(folder)
    configs.append({**config, "seed": None})
    if configs[0] != configs[-1]:
      first = text.split(",")[0]
      raise InputError(f"{part} differs from {first} in more than its seed")
    points = ledger.curve(folder, metric)
    if not points:
      raise InputError(f"{folder} has no metrics; train it first")
    values[config["seed"]] = points[-1][1]
  if len(values) < text.count(",") + 1:
    raise InputError(f"{text}: two runs have one seed; each must have its own")
  return ledger.Row({}, values, 0)


def _recorded(path: pathlib.Path, wanted: str, metric: str) -> ledger.Row:
  found = ledger.read(path)
  if found["metric"] != metric:
    raise InputError(f"{path} holds {found['metric']}, not {metric}")
  named = ledger.named(ledger.rows(found))
  if wanted not in named:
    raise unknown(f"row (of {path})", wanted, named)
  return named[wanted]
