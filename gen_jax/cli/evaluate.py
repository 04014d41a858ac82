"""`gen-jax evaluate`: numbers of a checkpoint, protocol included.

Without --text, --choices, --pictures and --folder these are of the config's evaluators.
"""

import glob
import hashlib
import os
import pathlib

import jax

import gen_jax
from gen_jax import files, scoring
from gen_jax.cli import config_args, evaluate_pictures, hosts, trained, workdir
from gen_jax.types import InputError


def add_arguments(parser) -> None:
  """See `gen-jax evaluate --help`."""
  trained.add_arguments(parser)
  hosts.add_arguments(parser)
  group = parser.add_argument_group(
    "language models, on other data (instead of the config's evaluators)"
  )
  group.add_argument(
    "--text", help="file, or glob in quotes: perplexity and bits per byte"
  )
  group.add_argument(
    "--stride",
    type=int,
    help="new tokens per window of --text; default half the model's context",
  )
  group.add_argument(
    "--choices", help="JSONL of context, choices, label: accuracy by log-likelihood"
  )
  evaluate_pictures.add_arguments(parser)
  parser.add_argument(
    "--likelihood",
    type=int,
    metavar="N",
    help="bits per dimension of N validation pictures (instead of the evaluators)",
  )


def run(args) -> dict:
  """Evaluates; also written to WORKDIR/evaluation.json."""
  directory = files.path(args.workdir, "--workdir")
  is_given = lambda n: getattr(args, n) not in (None, False)  # noqa: E731
  given = [n for n in ("text", "stride", "choices") if is_given(n)]
  is_pictures = args.baseline or any(map(is_given, evaluate_pictures.FLAGS))
  # What pictures are held against may be other data than they were learned from.
  data = [o for o in args.overrides if is_pictures and o[0].startswith("data.")]
  own = [o for o in args.overrides if o not in data]
  config = config_args.apply(workdir.read_config(directory, own), data)
  with hosts.join(args, config) as roll:
    if given:
      result = _on_other_data(args, directory, config, given)
    elif is_pictures:
      result = evaluate_pictures.run(args, directory, config)
    else:
      result = _on_its_own(args, directory, config, roll)
    workdir.write_json(directory / "evaluation.json", result)
  return result


def _on_its_own(args, directory: pathlib.Path, config: dict, roll: hosts.Roll) -> dict:
  if args.likelihood is not None:
    block = {"name": "likelihood", "every": 0, "num": args.likelihood}
    config = {**config, "evaluators": {"likelihood": block}}
  opened = trained.open_trained(directory, config, args.checkpoint, args.weights)
  with roll.first():
    evals = opened.experiment.evaluators()
  print(f"step {opened.step}, {opened.kind} weights")
  result, provenance = {}, opened.provenance()
  names = [name for name, block in config["evaluators"].items() if block is not None]
  about = {**provenance, **{k: config[k] for k in ("evaluators", "data", "sampling")}}
  if provenance["sha256"] is None:  # of several processes none has pieces of its own
    found = (_numbers(e, opened) for e in evals)
  else:
    found = _kept(directory / "evaluation.partial", about, names, evals, opened)
  for numbers in found:
    result |= _show(numbers)
  return {**provenance, **result, "sampling": config["sampling"]}


def _numbers(evaluator, opened: trained.Opened) -> dict[str, float]:
  """What an evaluator measures, without its images."""
  pairs = evaluator(opened.weights, opened.experiment.frozen)
  return {name: value for name, value in pairs if isinstance(value, float)}


def _kept(home: pathlib.Path, about: dict, names: list[str], evals, opened):
  """Yields the numbers of each evaluator, those of an interrupted command first."""
  with workdir.unfinished(home, about):
    for name, evaluator in zip(names, evals, strict=True):
      path = home / f"{name}.json"
      if not path.exists():
        workdir.write_json(path, _numbers(evaluator, opened))
      yield files.read_json(path)


def _on_other_data(args, directory, config: dict, given: list[str]) -> dict:
  """Reads and checks all data before the weights, which take longer."""
  if config["task"]["name"] != "language_model":
    raise InputError(
      f"--{given[0]} is for text; {directory} holds a picture model: leave it out"
    )
  if given == ["stride"] or (args.stride is not None and args.text is None):
    raise InputError(f"--stride {args.stride} is for --text: give both, or neither")
  context = config["task"]["model"]["max_length"]
  stride = max(1, context // 2) if args.stride is None else args.stride
  scoring.windows([], context, stride)  # refuses a stride that cannot be
  texts = None if args.text is None else _read("--text", args.text)
  questions = None
  if args.choices is not None:
    jsonl = _read("--choices", args.choices)
    questions = [
      question
      for path, content in jsonl.items()
      for question in scoring.read_questions(content, path)
    ]
  opened = trained.open_trained(directory, config, args.checkpoint, args.weights)
  model, tokenizer = opened.experiment.task.model, opened.experiment.tokenizer
  scorer = scoring.Scorer(model)
  result = {
    "step": opened.step,
    "weights": opened.kind,
    "dtype": model.config.dtype,
    "context": context,
    "tokenizer": type(tokenizer.encoding).__name__,
    "tokenizer_sha256": tokenizer.fingerprint,
    "gen_jax": gen_jax.__version__,
    "jax": jax.__version__,
  }
  _show(result)
  if texts is not None:
    score = scoring.score_texts(
      scorer, opened.weights, tokenizer, texts.values(), stride
    )
    numbers = {
      "perplexity": score.perplexity,
      "bits_per_byte": score.bits_per_byte,
      "stride": stride,
      "num_tokens": score.num_tokens,
      "num_bytes": score.num_bytes,
    }
    result |= _show(_stamped("text", numbers, texts))
  if questions is not None:
    numbers = scoring.score_questions(scorer, opened.weights, tokenizer, questions)
    result |= _show(_stamped("choices", numbers, jsonl))
  return result


def _read(flag: str, pattern: str) -> dict[str, str]:
  """{path: text} of the files that a glob matches, in the order of their names."""
  paths = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
  paths = [path for path in paths if os.path.isfile(path)]
  if not paths:
    raise InputError(
      f"{flag}: no file matches {pattern!r}; give a file, or a glob in quotes"
    )
  texts = {}
  for path in paths:
    try:
      texts[path] = pathlib.Path(path).read_bytes().decode()
    except UnicodeDecodeError as error:
      raise InputError(
        f"{flag}: {path} is not UTF-8 text (byte {error.start}); convert it, e.g. with"
        " iconv"
      ) from None
    except OSError as error:
      raise InputError(f"{flag}: cannot read {path}: {error.strerror}") from None
  if not any(texts.values()):
    raise InputError(f"{flag}: {pattern} is empty; give a file with text")
  return texts


def _sha256(texts: dict[str, str]) -> str:
  """Of the file; of several, that of their hashes, one a line, as sha256sum does it."""
  hashes = [hashlib.sha256(text.encode()).hexdigest() for text in texts.values()]
  if len(hashes) == 1:
    return hashes[0]
  return hashlib.sha256("".join(f"{h}\n" for h in hashes).encode()).hexdigest()


def _stamped(kind: str, numbers: dict, texts: dict[str, str]) -> dict:
  data = {"path": ", ".join(texts) if len(texts) < 4 else f"{next(iter(texts))}, ..."}
  data |= {"num_files": len(texts), "sha256": _sha256(texts)}
  return {f"{kind}/{name}": value for name, value in {**numbers, **data}.items()}


def _show(numbers: dict) -> dict:
  for name, value in numbers.items():
    shown = f"{value:.4f}" if isinstance(value, float) else value
    print(f"{name:32} {shown}", flush=True)
  return numbers
