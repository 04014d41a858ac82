"""Texts in the terminal and on disk: continuations and their records, and chat."""

import contextlib
import json
import pathlib
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from gen_jax import rng
from gen_jax.inference import text_generator
from gen_jax.system import files, progress, signals
from gen_jax.types import InputError, Params

AT_ONCE = 8  # continuations; none depends on it


def groups(prompts: Sequence[str], num: int) -> list[tuple[str, range]]:
  """(prompt, indices of its continuations) of each batch."""
  return [
    (prompt, range(first, min(first + AT_ONCE, num)))
    for prompt in prompts
    for first in range(0, num, AT_ONCE)
  ]


def write(
  folder: pathlib.Path,
  writer: text_generator.TextGenerator,
  params: Params,
  prompts: Sequence[str],
  num: int,
  how: dict[str, Any],
  *,
  read: Callable[[str], text_generator.Prompt] = lambda text: text,
  logprobs: bool = False,
) -> dict[str, Any]:
  """Prints `num` continuations of every prompt, and writes them to text.jsonl.

  What an interrupted command with the same arguments drew is kept.

  Args:
    how: everything that they depend on, as JSON, for each record; has `seed`, and
      `model`, whose `sha256` is None if unknown.
    read: a prompt -> what the model continues.
    logprobs: whether to show and keep the log-probability of every token.
  """
  how = json.loads(json.dumps(how))  # as JSON reads it back
  keys = rng.sample_keys(how["seed"], num)
  samples, path = [], folder / "text.jsonl"
  done = _drawn_before(path, how) if how["model"]["sha256"] else {}
  batches = groups(prompts, num)
  with _appending(path, done.values()) as write:
    for prompt, group in progress.lines(batches, len(batches), "groups of samples"):
      found = [done.get((prompt, i)) for i in group]
      if None in found:
        show = _stream(prompt) if num == 1 else lambda texts: None
        given = [read(prompt)] * len(group)
        drawn = writer.samples(params, given, keys[np.array(group)], show)
        found = [
          {**_record(prompt, sample, i, logprobs), **how}
          for i, sample in zip(group, drawn, strict=True)
        ]
        if num == 1:
          print("\n", flush=True)
      elif num == 1:
        print(f"{prompt}{found[0]['text']}\n", flush=True)
      for record in found:
        if num > 1:
          print(f"{prompt}{record['text']}\n", flush=True)
        if logprobs:
          _show_logprobs(record, writer.tokenizer)
        write(record)
        samples.append(record)
  return {"samples": samples, "path": str(path)}


def _drawn_before(path: pathlib.Path, how: dict) -> dict[tuple[str, int], dict]:
  """{(prompt, index): record} drawn in the same way; {} of a damaged file."""
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
  """Yields a function that writes a line of JSON to a partial file.

  However the body ends, the partial file then replaces the path if it has a line. A
  killed process leaves the partial file; its last line may be incomplete.

  Args:
    before: records that must not be lost: if the body fails, those that it did not
      reach are written after its own.
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
  """Prints the prompt before the first piece; a refused prompt is not shown."""
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


def talk(
  writer: text_generator.TextGenerator, params: Params, seed: int
) -> dict[str, int]:
  """Reads lines and answers them, as a chat if there is a template."""
  is_chat = writer.tokenizer.chat_template is not None
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
      key = rng.sample_keys(seed, 1, num)[0]
      answer = _answer(writer.stream(params, prompt, key))
      messages.append({"role": "assistant", "content": answer})
    except InputError as error:  # the chat goes on
      messages = messages[:-1]
      progress.warn(str(error))
    num += 1
  print()
  return {"answers": num}


def _answer(pieces: Iterator[str]) -> str:
  """Prints an answer as it is drawn; Ctrl-C ends the answer, not the chat."""
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
  """Tokens of the chat so far, without the oldest turns if the context is too short."""
  room = writer.model.config.max_length - min(32, writer.sampling.max_tokens)
  while True:
    ids = writer.tokenizer.encode_chat(messages)
    if len(ids) <= room or len(messages) < 3:
      return ids
    progress.warn("the oldest turn is forgotten")
    del messages[:2]
