"""`gen-jax sample`: prompts in; text to the terminal, or images into the workdir."""

import contextlib
import dataclasses
import json
import pathlib
import signal
import sys
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from gen_jax import rng
from gen_jax.cli import flags, hosts
from gen_jax.data import datasets, infill
from gen_jax.inference import text_generator
from gen_jax.runs import drawing
from gen_jax.runs import run as runs
from gen_jax.runs import weights as weighing
from gen_jax.system import files, folders, progress, signals
from gen_jax.types import InputError

TEXT = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
TEXT += ("order", "stop")
SWITCHES = {  # of text
  "logprobs": "print the log-probability of every token",
  "chat": "each --prompt is a message; the tokenizer's chat template goes around it",
  "infill": f"each --prompt holds {infill.HOLE}, which is written (data.name=infill)",
  "interactive": "talk in the terminal: /reset, /exit",
}
IMAGE = ("sampler", "grid", "num_steps", "guidance_scale", "guidance_interval")
IMAGE += ("guidance_rescale", "size", "tile")


def add_arguments(parser) -> None:
  """See `gen-jax sample --help`."""
  flags.add_model(parser)
  hosts.add_arguments(parser)
  parser.add_argument(
    "--prompt", action="append", help="what to continue or to draw; may be repeated"
  )
  parser.add_argument("--num", type=int, default=1, help="samples per prompt")
  parser.add_argument(
    "--seed", type=int, default=0, help="sample i depends on (seed, i)"
  )
  parser.add_argument(
    "--out", action=flags.Path, help="folder to write to; default WORKDIR/samples"
  )
  group = parser.add_argument_group("text alone")
  for name, meaning in SWITCHES.items():
    group.add_argument(f"--{name}", action="store_true", help=meaning)
  parser.add_argument("--negative", help="images: what to lead away from")
  parser.add_argument(
    "--interpolate",
    type=int,
    metavar="N",
    help="images: N of them from the first --prompt to the second",
  )
  parser.add_argument(
    "--autoencoder",
    action=flags.Path,
    metavar="DIR",
    help="images: another one for the same latents",
  )
  group = parser.add_argument_group(
    "how to draw (default: the config's sampling block)"
  )
  for name in TEXT:
    if name == "stop":
      group.add_argument("--stop", action="append", help="text; may be repeated")
    else:
      group.add_argument(f"--{name}", help="text")
  for name in IMAGE:
    group.add_argument(f"--{name}", help="images")


def run(args) -> dict:
  """Draws samples and says where they are."""
  drawing.check(args.num, args.seed)
  opened = runs.open_run(args.workdir, args.overrides)
  is_text = opened.is_text
  own, other = (TEXT, IMAGE) if is_text else (IMAGE, TEXT)
  for name in (
    *other,
    *(("negative", "autoencoder", "interpolate") if is_text else SWITCHES),
  ):
    if getattr(args, name):
      raise InputError(
        f"--{name} is for {'images' if is_text else 'text'}; {args.workdir} holds a"
        f" {'text' if is_text else 'image'} model: {', '.join(f'--{n}' for n in own)}"
      )
  if args.interpolate is not None and (
    args.interpolate < 2 or len(args.prompt or []) != 2 or args.num != 1
  ):
    raise InputError(
      f"--interpolate {args.interpolate} must be at least 2, with --prompt twice and"
      " no --num"
    )
  given = flags.given(args, own)
  for name, words in (("stop", args.stop), ("order", args.order)):
    if words:
      given[name] = tuple(words if name == "stop" else words.split(","))
  opened = opened.configured({f"sampling.{k}": v for k, v in given.items()})
  opened = dataclasses.replace(opened, autoencoder=args.autoencoder)
  with hosts.join(args, opened.config):
    return _draw(args, opened)


def _check_idle(args, opened: runs.Run) -> None:
  """Raises InputError for a flag that another one, or the config, switches off."""
  idle = drawing.idle(opened.experiment)
  if args.interactive:
    alone = ("prompt", "out", "chat", "infill", "logprobs")
    idle |= dict.fromkeys(alone, "--interactive asks for lines and prints answers")
  if args.chat:
    idle |= {"infill": "--chat puts the template around the prompt"}
  drawing.check_idle([name for name in idle if getattr(args, name)], idle)


def _draw(args, opened: runs.Run) -> dict:
  if args.interactive and jax.process_count() > 1:
    raise InputError("--interactive is for a run of one process")
  opened.require_tokenizer()
  _check_idle(args, opened)
  weights = opened.weights(args.checkpoint, args.weights)
  if args.interactive:
    return _talk(args, opened, weights)
  draw = _text if opened.is_text else _images
  with folders.out(args.out, args.workdir / "samples") as folder:
    result = draw(args, opened, weights, args.prompt or [""], folder)
  if jax.process_index() == 0:
    print(f"by the {weights.name} weights of step {weights.step}", file=sys.stderr)
  return {"step": weights.step, "weights": weights.name, **result}


def _reader(args, experiment):
  """How a --prompt becomes what the model continues."""
  tokenizer = experiment.tokenizer
  if args.chat:
    return lambda text: tokenizer.encode_chat([{"role": "user", "content": text}])
  if args.infill:
    if not isinstance(experiment.data, datasets.Infill):
      raise InputError("--infill needs a model trained with data.name=infill")
    return lambda text: experiment.data.how.around(text, tokenizer)
  return lambda text: text


def _text(
  args, opened: runs.Run, weights, prompts: list[str], folder: pathlib.Path
) -> dict:
  """Continues every prompt; what an interrupted command of these words drew, stands."""
  writer = opened.generator
  read = _reader(args, opened.experiment)
  keys = rng.sample_keys(args.seed, args.num)
  how = {"seed": args.seed, "sampling": dataclasses.asdict(writer.sampling)}
  how["flags"] = [name for name in SWITCHES if getattr(args, name)]
  how = json.loads(json.dumps({**how, "model": weights.provenance()}))  # as it is read
  samples, path = [], folder / "text.jsonl"
  done = _drawn_before(path, how) if how["model"]["sha256"] else {}
  groups = drawing.text_groups(prompts, args.num)
  with _appending(path, done.values()) as write:
    for prompt, group in progress.lines(groups, len(groups), "groups of samples"):
      found = [done.get((prompt, i)) for i in group]
      if None in found:
        show = _stream(prompt) if args.num == 1 else lambda texts: None
        given = [read(prompt)] * len(group)
        drawn = writer.samples(weights.params, given, keys[np.array(group)], show)
        found = [
          {**_record(prompt, sample, i, args.logprobs), **how}
          for i, sample in zip(group, drawn, strict=True)
        ]
        if args.num == 1:
          print("\n", flush=True)
      elif args.num == 1:
        print(f"{prompt}{found[0]['text']}\n", flush=True)
      for record in found:
        if args.num > 1:
          print(f"{prompt}{record['text']}\n", flush=True)
        if args.logprobs:
          _show_logprobs(record, writer.tokenizer)
        write(record)
        samples.append(record)
  return {"samples": samples, "path": str(path)}


def _drawn_before(path: pathlib.Path, how: dict) -> dict[tuple[str, int], dict]:
  """{(prompt, index): record} of what was drawn just so; damaged files hold nothing."""
  found = {}
  for file in (path, path.with_name(f"{path.name}.partial")):
    with contextlib.suppress(InputError):
      for _, record in files.records(file):
        if isinstance(record.get("text"), str) and how.items() <= record.items():
          found[record.get("prompt"), record.get("index")] = record
  return found


@contextlib.contextmanager
def _appending(
  path: pathlib.Path, before: Iterable[dict]
) -> Iterator[Callable[[dict], None]]:
  """Yields what writes a line of JSON to a partial file, which takes the path's place.

  It does so however the body ends, if there is a line; a killed process leaves the
  partial file, of whose lines the last may be torn.

  Args:
    before: records that must not be lost: those that a body that fails has not come to
      are written after its own.
  """
  if jax.process_index():
    yield lambda record: None
    return
  partial, written = path.with_name(f"{path.name}.partial"), set()
  with partial.open("w", encoding="utf-8") as file:

    def write(record: dict) -> None:
      file.write(json.dumps(record) + "\n")
      file.flush()
      written.add((record["prompt"], record["index"]))

    try:
      yield write
    except BaseException:
      for record in before:
        if (record["prompt"], record["index"]) not in written:
          write(record)
      raise
    finally:
      file.close()
      partial.replace(path) if written else partial.unlink()


def _stream(prompt: str):
  """Prints the prompt before the first piece: it is not shown if it is refused."""
  shown = []

  def show(texts: list[str]) -> None:
    print(("" if shown else prompt) + texts[0], end="", flush=True)
    shown.append(True)

  return show


def _show_logprobs(record: dict, tokenizer) -> None:
  for token, logprob in zip(record["tokens"], record["logprobs"], strict=True):
    print(f"  {logprob:9.4f}  {''.join(tokenizer.decode_pieces([token]))!r}")
  print()


def _record(
  prompt: str, sample: text_generator.Sample, index: int, logprobs: bool
) -> dict:
  record = {"prompt": prompt, "text": sample.text, "index": index}
  record["logprob"] = float(sample.logprobs.sum())
  if logprobs:
    record["tokens"] = sample.tokens.tolist()
    record["logprobs"] = sample.logprobs.tolist()
  return record


def _talk(args, opened: runs.Run, weights: weighing.Weights) -> dict:
  """Reads lines and answers them: as a chat where there is a template for one."""
  writer = opened.family.generator(opened.experiment, piece=2)
  tokenizer = writer.tokenizer
  is_chat = tokenizer.chat_template is not None
  print("a chat" if is_chat else "continues what you type", "(/reset, /exit)")
  messages, num = [], 0
  while True:
    try:
      line = input("> ")
    except EOFError:
      break
    if line.strip() == "/exit":
      break
    if line.strip() == "/reset":
      messages = []
      continue
    try:
      messages.append({"role": "user", "content": line})
      prompt = _history(writer, messages) if is_chat else line
      key = rng.sample_keys(args.seed, 1, num)[0]
      answer = _answer(writer.stream(weights.params, prompt, key))
      messages.append({"role": "assistant", "content": answer})
    except InputError as error:  # the talk goes on
      messages = messages[:-1]
      weighing.warn(str(error))
    num += 1
  print()
  return {"answers": num}


def _answer(pieces: Iterator[str]) -> str:
  """Prints an answer as it comes; Ctrl-C ends the answer, and not the talk."""
  answer = ""
  with signals.held():
    for piece in pieces:
      if signals.asked():
        break
      print(piece, end="", flush=True)
      answer += piece
  if signals.asked() == signal.SIGINT:
    signals.forget()
    print(" [stopped]", end="")
  elif signals.asked():
    raise signals.Interrupted
  print()
  return answer


def _history(writer: text_generator.TextGenerator, messages: list[dict]) -> list[int]:
  """Tokens of the talk so far; the oldest turns go where the context is too short."""
  room = writer.model.config.max_length - min(32, writer.sampling.max_tokens)
  while True:
    ids = writer.tokenizer.encode_chat(messages)
    if len(ids) <= room or len(messages) < 3:
      return ids
    weighing.warn("the oldest turn is forgotten")
    del messages[:2]


def _images(
  args, opened: runs.Run, weights, prompts: list[str], folder: pathlib.Path
) -> dict:
  num, negative = args.interpolate or args.num, args.negative or ""
  plan = drawing.between if args.interpolate else drawing.images
  plan = plan(opened.generator, weights, prompts, num, args.seed, negative)
  how = {**opened.config["sampling"], "negative": negative}
  how |= {"num": num, **weights.provenance()}
  return plan.write(folder, args.seed, num, how)
