"""`gen-jax evaluate`: numbers of a checkpoint, protocol included.

Without --text, --choices, --images and --folder these are of the config's evaluators.
"""

import dataclasses
import hashlib
import pathlib

import jax

import gen_jax
from gen_jax.cli import evaluate_images, flags, hosts
from gen_jax.evaluation import scoring
from gen_jax.runs import run as runs
from gen_jax.runs import workdir
from gen_jax.system import files, folders
from gen_jax.types import InputError


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
    help="new tokens per window of --text; default half the model's context",
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
  given = flags.given(args, ("text", "stride", "choices"))
  is_image_model = flags.given(args, ("baseline", *evaluate_images.FLAGS))
  # What images are held against may be other data than they were learned from.
  data = [o for o in args.overrides if is_image_model and o[0].startswith("data.")]
  own = [o for o in args.overrides if o not in data]
  opened = runs.open_run(args.workdir, own).configured(data)
  with hosts.join(args, opened.config) as group:
    if given:
      result = _on_other_data(args, opened, list(given))
    elif is_image_model:
      result = evaluate_images.run(args, opened)
    else:
      result = _on_its_own(args, opened, group)
    workdir.write_json(workdir.evaluation(args.workdir), result)
  return result


def _on_its_own(args, opened: runs.Run, group: hosts.ProcessGroup) -> dict:
  if args.likelihood is not None:
    block = {"name": "likelihood", "every": 0, "num": args.likelihood}
    config = {**opened.config, "evaluators": {"likelihood": block}}
    opened = dataclasses.replace(opened, config=config)
  opened.require_tokenizer()
  weights, config = opened.weights(args.checkpoint, args.weights), opened.config
  with group.main_process_first():
    evals = opened.experiment.evaluators()
  print(f"step {weights.step}, {weights.name} weights")
  result, provenance = {}, weights.provenance()
  about = {**provenance, **{k: config[k] for k in ("evaluators", "data", "sampling")}}
  if provenance["sha256"] is None:  # of several processes none has pieces of its own
    found = (runs.numbers(e, weights) for e in evals)
  else:
    found = _kept(args.workdir / "evaluation.partial", about, evals, weights)
  for numbers in found:
    result |= _show(numbers)
  return {**provenance, **result, "sampling": config["sampling"]}


def _kept(home: pathlib.Path, about: dict, evals, weights):
  """Yields the numbers of each evaluator, those of an interrupted command first."""
  with folders.unfinished(home, about):
    for i, evaluator in enumerate(evals):
      path = home / f"{i}.json"
      if not path.exists():
        workdir.write_sealed(path, runs.numbers(evaluator, weights))
      yield files.read_sealed(path)


def _on_other_data(args, opened: runs.Run, given: list[str]) -> dict:
  """Reads and checks all data before the weights, which take longer."""
  if opened.family.draws or opened.family.encoder:
    raise InputError(
      f"--{given[0]} is for text; {args.workdir} holds an image model: leave it out"
    )
  if given == ["stride"] or (args.stride is not None and args.text is None):
    raise InputError(f"--stride {args.stride} is for --text: give both, or neither")
  context = opened.config["task"]["model"]["max_length"]
  stride = max(1, context // 2) if args.stride is None else args.stride
  scoring.windows([], context, stride)  # refuses a stride that cannot be
  texts = questions = None
  if args.text is not None:
    text_files = files.matching(str(args.text))
    texts = list(map(files.read, text_files))
    if not any(texts):
      raise InputError(f"--text {args.text} is empty; give a file with text")
  if args.choices is not None:
    jsonl_files = files.matching(str(args.choices))
    questions = [
      question
      for path in jsonl_files
      for question in scoring.read_questions(files.read(path), str(path))
    ]
  opened.require_tokenizer()
  weights = opened.weights(args.checkpoint, args.weights)
  model, tokenizer = opened.experiment.task.model, opened.experiment.tokenizer
  scorer = scoring.Scorer(model)
  result = {
    "step": weights.step,
    "weights": weights.name,
    "dtype": model.config.dtype,
    "context": context,
    "tokenizer": type(tokenizer.encoding).__name__,
    "tokenizer_sha256": tokenizer.fingerprint,
    "gen_jax": gen_jax.__version__,
    "jax": jax.__version__,
  }
  _show(result)
  if texts is not None:
    score = scoring.score_texts(scorer, weights.params, tokenizer, texts, stride)
    numbers = {
      "perplexity": score.perplexity,
      "bits_per_byte": score.bits_per_byte,
      "stride": stride,
      "num_tokens": score.num_tokens,
      "num_bytes": score.num_bytes,
    }
    result |= _show(_stamped("text", numbers, text_files))
  if questions is not None:
    numbers = scoring.score_questions(scorer, weights.params, tokenizer, questions)
    result |= _show(_stamped("choices", numbers, jsonl_files))
  return result


def _sha256(paths: list[pathlib.Path]) -> str:
  """Of the file; of several, that of their hashes, one a line, as sha256sum does it."""
  hashes = list(map(files.sha256, paths))
  if len(hashes) == 1:
    return hashes[0]
  return hashlib.sha256("".join(f"{h}\n" for h in hashes).encode()).hexdigest()


def _stamped(kind: str, numbers: dict, paths: list[pathlib.Path]) -> dict:
  path = ", ".join(map(str, paths)) if len(paths) < 4 else f"{paths[0]}, ..."
  data = {"path": path, "num_files": len(paths), "sha256": _sha256(paths)}
  return {f"{kind}/{name}": value for name, value in {**numbers, **data}.items()}


def _show(numbers: dict) -> dict:
  for name, value in numbers.items():
    shown = f"{value:.4f}" if isinstance(value, float) else value
    print(f"{name:32} {shown}", flush=True)
  return numbers
