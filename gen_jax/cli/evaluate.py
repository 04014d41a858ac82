"""`gen-jax evaluate`: numbers of a checkpoint, protocol included.

They are of the config's evaluators, or of those that the flags stand for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping

from gen_jax.cli import evaluate_images, flags, hosts
from gen_jax.errors import InputError
from gen_jax.evaluation import scoring
from gen_jax.inference import sheets, tint
from gen_jax.runs import run as runs
from gen_jax.runs import workdir
from gen_jax.system import files, folders, globs
from gen_jax.train import writers

_PARTIAL = "evaluation.partial"  # folder of what an interrupted command has done


def add_arguments(parser) -> None:
  """See `gen-jax evaluate --help`."""
  flags.add_model(parser)
  hosts.add_arguments(parser)
  group = parser.add_argument_group(
    "language models, on other data (instead of the config's evaluators)"
  )
  group.add_argument(
    "--text",
    action=flags.Path,
    help="file, or glob in quotes: perplexity and bits per byte",
  )
  group.add_argument(
    "--stride",
    type=int,
    help="new tokens per window of --text; default: half the model's context",
  )
  group.add_argument(
    "--choices",
    action=flags.Path,
    help="JSONL of context, choices, label: accuracy by log-likelihood",
  )
  evaluate_images.add_arguments(parser)
  parser.add_argument(
    "--likelihood",
    type=int,
    metavar="N",
    help="bits per dimension of N validation images (instead of the evaluators)",
  )


def run(args) -> dict:
  """Evaluates; also written to WORKDIR/evaluation.json."""
  of_images = bool(flags.given(args, ("baseline", *evaluate_images.FLAGS)))
  blocks, other = _on_text(args), {}
  asked = {"text": blocks, "images": of_images, "likelihood": args.likelihood}
  if len(several := [f"--{n}" for n, x in asked.items() if x]) > 1:
    raise InputError(f"{' and '.join(several)}: evaluations of their own; give one")
  # What images are held against may be other data than they were learned from.
  data = [o for o in args.overrides if of_images and o[0].startswith("data.")]
  own = [o for o in args.overrides if o not in data]
  opened = runs.open_run(args.workdir, own).configured(data)
  if of_images and not blocks:
    blocks = {"images": evaluate_images.block(args)}
    other = evaluate_images.read(args.against) if args.against else {}
  if blocks:
    opened = _evaluated_by(opened, blocks)
  elif args.likelihood is not None:
    opened = _evaluated_by(opened, {"likelihood": {"num": args.likelihood}})
  with hosts.join(args, opened.config) as group:
    if blocks:
      result = _requested(args, opened, other)
    else:
      result = _of_the_config(args, opened, group)
    workdir.write_json(workdir.evaluation(args.workdir), result)
  return result


def _on_text(args) -> dict[str, dict]:
  """The evaluators that flags of language models stand for, by name."""
  if args.stride is not None and args.text is None:
    raise InputError(f"--stride {args.stride} is for --text: give both, or neither")
  blocks = {}
  if args.text is not None:
    blocks["text"] = {"pattern": str(args.text), "stride": args.stride}
  if args.choices is not None:
    blocks["choices"] = {"pattern": str(args.choices)}
  return blocks


def _evaluated_by(opened: runs.Run, blocks: dict[str, dict]) -> runs.Run:
  """The run with other evaluators: keys of each, by name."""
  blocks = {n: {"name": n, "every": 0, **keys} for n, keys in blocks.items()}
  config = {**opened.config, "evaluators": blocks}
  return dataclasses.replace(opened, config=config)


def _requested(args, opened: runs.Run, other: dict) -> dict:
  """Numbers of what flags name; all data are read before the weights are."""
  folder = opened.config["evaluators"].get("images", {}).get("folder")
  if not folder:
    opened.require_tokenizer()
  evals = opened.experiment.evaluators()
  about = {key: value for e in evals for key, value in e.about.items()}
  if folder:
    given, result = (None, None), {"folder": folder}
  else:
    weights = opened.weights(args.checkpoint, args.weights)
    given, result = (weights.params, weights.frozen), {"step": weights.step}
  if protocol := about.get("protocol"):
    protocol |= {} if folder else {"weights": weights.name}
    evaluate_images.check(protocol, other, args.against)
  else:
    result, about = {**result, "weights": weights.name, **about}, {}
    _show(result)
  home, keep = args.workdir / _PARTIAL, [folders.nothing_kept] * len(evals)
  with contextlib.ExitStack() as stack:
    if not folder and (made_by := weights.provenance())["sha256"]:
      known = {**made_by, **(protocol or result)}
      stack.enter_context(folders.unfinished(home, known))
      keep = [functools.partial(folders.kept, home / str(i)) for i in range(len(evals))]
    for evaluator, kept in zip(evals, keep, strict=True):
      found = dict(evaluator(*given, kept))
      if (sheet := found.pop("nearest", None)) is not None:
        of = "images, each with the nearest three of training"
        of += f", in {protocol['features']}"
        print(f"{of}: {sheets.save_figure(args.workdir, 'nearest', sheet, of)}")
      result |= _show(found, other)
  if args.text is not None:
    tint.show(_beginning(opened, weights, args.text))
  return {**result, **about}


def _beginning(opened: runs.Run, weights, pattern) -> Iterator[tuple[str, float]]:
  """How likely each token of the beginning was found; computed if it is shown."""
  made = opened.experiment
  text, tokenizer = files.read(globs.matching(str(pattern))[0]), made.tokenizer
  given = (opened.family.scorer(made), weights.params, tokenizer, text)
  ids, logprobs = scoring.beginning(*given)
  yield from zip(tint.pieces(tokenizer, ids), logprobs, strict=True)


def _of_the_config(args, opened: runs.Run, group: hosts.ProcessGroup) -> dict:
  opened.require_tokenizer()
  weights, config = opened.weights(args.checkpoint, args.weights), opened.config
  with group.main_process_first():
    evals = opened.experiment.evaluators()
  print(f"step {weights.step}, {weights.name} weights")
  result, provenance = {}, weights.provenance()
  about = {**provenance, **{k: config[k] for k in ("evaluators", "data", "sampling")}}
  measure = functools.partial(_measure, args.workdir, weights, group)
  if provenance["sha256"] is None:  # of several processes none has pieces of its own
    found = map(measure, evals)
  else:
    found = _kept(args.workdir / _PARTIAL, about, evals, measure)
  for numbers in found:
    result |= _show(numbers)
  return {**provenance, **result, "sampling": config["sampling"]}


def _measure(directory: pathlib.Path, weights, group, evaluator) -> dict:
  """The numbers of an evaluator; its texts go where training puts them."""

  def keep(name, text):
    if not group.process_id:
      print(f"{name}: {writers.save_text(directory, name, weights.step, text)}")

  return runs.numbers(evaluator, weights, keep)


def _kept(home: pathlib.Path, about: dict, evals, measure):
  """Yields the numbers of each evaluator, those of an interrupted command first."""
  with folders.unfinished(home, about):
    for i, evaluator in enumerate(evals):
      path = home / f"{i}.json"
      if not path.exists():
        workdir.write_sealed(path, measure(evaluator))
      yield files.read_sealed(path)


def _show(numbers: dict, other: Mapping[str, float] | None = None) -> dict:
  """Prints numbers, each next to that of another evaluation if it has it."""
  for name, value in numbers.items():
    shown = f"{value:.4f}" if isinstance(value, float) else value
    there = f"   there {other[name]:.4f}" if other and name in other else ""
    print(f"{name:32} {shown}{there}", flush=True)
  return numbers
