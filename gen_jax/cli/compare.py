"""`gen-jax compare A B --metric M`: the difference between runs, with an interval.

A and B are workdirs, several of one config separated by commas (its seeds), or rows of
a recorded sweep: results.json#overrides. With --examples they are one workdir each.
"""

from __future__ import annotations

import pathlib

import numpy as np

from gen_jax.errors import InputError, unknown
from gen_jax.runs import workdir
from gen_jax.sweeps import ledger, statistics
from gen_jax.system import files
from gen_jax.train import evaluators


def add_arguments(parser) -> None:
  """See `gen-jax compare --help`."""
  add = parser.add_argument
  what = "workdirs that differ in seed, comma-separated; or results.json#peak=0.001"
  add("a", metavar="A", help=what)
  add("b", metavar="B", help="the same")
  add("--metric", help="default: the ledger's; else validation/loss")
  add(
    "--examples",
    action="store_true",
    help="for two runs, one seed each: over the examples on which both are evaluated;"
    " this says nothing about other seeds",
  )


def run(args) -> dict:
  """Compares."""
  return _of_examples(args) if args.examples else _of_seeds(args)


def _of_seeds(args) -> dict:
  metric = args.metric or _metric(args.a) or _metric(args.b) or "validation/loss"
  a, b = (_row(text, metric) for text in (args.a, args.b))
  sign = -1.0 if evaluators.cost(metric, 1.0) < 0 else 1.0
  if len(a.values) == len(b.values) == 1 and "#" not in args.a + args.b:
    raise InputError(
      "A and B are one run each, and an interval over seeds needs at least 2;"
      " --examples gives one over examples, of these two models alone"
    )
  difference = ledger.compare(a, b)
  for name, row in (("A", a), ("B", b)):
    shown = row.interval or f"{row.mean:.4g}"
    print(f"{name}  {metric} {shown} over {len(row.values)} seeds")
  print(f"B - A: {difference}")
  verdict = _verdict(difference.interval, sign)
  if difference.is_paired and verdict == _NONE:
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


_NONE = "no difference shown"


def _verdict(difference: statistics.Interval, sign: float = 1.0) -> str:
  """Who is better, printed; of B - A, of a metric that is lower where sign is 1."""
  low, high = sorted((difference.low * sign, difference.high * sign))
  verdict = "B is better" if high < 0 else "A is better"
  verdict = _NONE if low <= 0 <= high else verdict
  print(verdict)
  return verdict


def _of_examples(args) -> dict:
  """Two trained models on the same examples."""
  from gen_jax.runs import run as runs

  metric = args.metric or "validation/loss"
  opened = [runs.open_run(text) for text in (args.a, args.b)]
  for run in opened:
    run.require_tokenizer()
  names = [run.config["task"]["name"] for run in opened]
  if names[0] != names[1]:
    raise InputError(f"losses of other tasks are not compared: {' and '.join(names)}")
  evals = [_evaluator(run, metric) for run in opened]
  which = f"{args.a} and {args.b} are evaluated on other examples, batches or tokens"
  unlike = InputError(f"{which}; --examples needs the same")
  first, second = (next(iter(evaluator.batches())) for evaluator in evals)
  if not all(np.array_equal(first[n], second[n]) for n in first.keys() & second.keys()):
    raise unlike
  one, other = (workdir.flat(run.config) for run in opened)
  differ = [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]
  print(f"A and B differ in {', '.join(sorted(differ)) or 'nothing but their weights'}")
  (a, counts), (b, same) = map(_losses, opened, evals)
  if not np.array_equal(counts, same):
    raise unlike
  for name, sums in (("A", a), ("B", b)):
    print(f"{name}  {metric} {sums.sum() / counts.sum():.4f} over {len(sums)} examples")
  difference = statistics.over_examples(a, b, counts)
  print(f"B - A: {difference}, of these two models, not of their configs")
  return {
    "metric": metric,
    "num_examples": len(a),
    "difference": difference._asdict(),
    "verdict": _verdict(difference),
  }


def _evaluator(run, metric: str) -> evaluators.LossEvaluator:
  name, _, what = metric.rpartition("/")
  evaluator = run.experiment.evaluator(name)
  if what != "loss" or not isinstance(evaluator, evaluators.LossEvaluator):
    raise InputError(f"--examples compares losses, `validation/loss` say, not {metric}")
  return evaluator


def _losses(run, evaluator: evaluators.LossEvaluator):
  """Summed loss and count of each example, by the weights that `evaluate` takes."""
  weights = run.weights("best")
  print(f"{run.workdir}: step {weights.step}, {weights.kind} weights")
  return evaluator.of_examples(weights.params, weights.frozen)


def _metric(text: str) -> str | None:
  name, hash_, _ = text.partition("#")
  return ledger.read(files.path(name, "A or B"))["metric"] if hash_ else None


def _row(text: str, metric: str) -> ledger.Row:
  """The runs that a word of the command line names."""
  name, hash_, wanted = text.partition("#")
  if hash_:
    return _recorded(files.path(name, "A or B"), wanted, metric)
  values, configs, folders = {}, [], _folders(text)
  for folder in folders:
    config = workdir.read_config(folder)
    configs.append({**config, "seed": None})
    if configs[0] != configs[-1]:
      raise InputError(f"{folder} differs from {folders[0]} in more than its seed")
    points = ledger.curve(folder, metric)
    if not points:
      raise InputError(f"{folder} has no metrics; train it first")
    train, step = config["train"], workdir.latest_step(folder)
    is_fixed = train["num_epochs"] is None and train["patience"] is None
    if is_fixed and step is not None and step < train["num_steps"]:
      end = train["num_steps"]
      raise InputError(
        f"{folder} is at step {step} of {end}; train it to its end first"
      )
    values[config["seed"]] = points[-1][1]
  if len(values) < len(folders):
    raise InputError(f"{text}: two runs have one seed; each must have its own")
  return ledger.Row({}, values, 0)


def _folders(text: str) -> list[pathlib.Path]:
  """Workdirs between commas, which the names of a sweep's arms have as well."""
  found, rest = [], text.split(",")
  while rest:
    names = [",".join(rest[: i + 1]) for i in range(len(rest))]
    paths = [files.path(name, "A or B") for name in names]
    last = next((i for i, p in enumerate(paths) if p.is_dir()), 0)
    found.append(paths[last])
    rest = rest[last + 1 :]
  return found


def _recorded(path: pathlib.Path, wanted: str, metric: str) -> ledger.Row:
  found = ledger.read(path)
  if found["metric"] != metric:
    raise InputError(f"{path} holds {found['metric']}, not {metric}")
  named = ledger.named(ledger.rows(found))
  if wanted not in named:
    raise unknown(f"row (of {path})", wanted, named)
  return named[wanted]
