"""Texts in the terminal and on disk: continuations and their records."""

import contextlib
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from gen_jax import rng
from gen_jax.data import tokenizers
from gen_jax.inference import text_generator, tint
from gen_jax.system import files, progress
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
  tokenizer = writer.tokenizer if logprobs else None
  samples, path = [], folder / "text.jsonl"
  before, wanted = (
    drawn_before(path, how),
    {(p, i) for p in prompts for i in range(num)},
  )
  done = {pair: record for pair, record in before.items() if pair in wanted}
  batches = groups(prompts, num)
  with appending(path, done, how) as write:
    for prompt, group in progress.lines(batches, len(batches), "groups of samples"):
      pairs = [(prompt, i) for i in group]
      found = [done[pair] for pair in pairs if pair in done]
      if len(found) < len(pairs):
        show = _stream(prompt) if num == 1 else lambda texts: None
        given = [read(prompt)] * len(group)
        keys = rng.sample_keys(how["seed"], len(group), group.start)
        drawn = writer.samples(params, given, keys, show)
        found = [
          {**record_of(prompt, sample, i, tokenizer), **how}
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
          _show_logprobs(record)
        write(record)
        samples.append(record)
  return {"samples": samples, "path": str(path)}


def drawn_before(path: pathlib.Path, how: dict) -> dict[tuple[str, int], dict]:
  """{(prompt, index): record} drawn in the same way; {} of a damaged file."""
  if not how["model"]["sha256"]:
    return {}
  found = {}
  for file in (path, path.with_name(f"{path.name}.partial")):
    for record in _records(file):
      if how.items() <= record.items():
        found[record.get("prompt", ""), record.get("index", -1)] = record
  return found


def _records(path: pathlib.Path) -> Iterator[dict]:
  """The continuations in a file, up to a damaged line."""
  with contextlib.suppress(InputError):
    for _, record in files.records(path):
      if isinstance(record.get("text"), str):
        yield record


@contextlib.contextmanager
def appending(
  path: pathlib.Path, before: Mapping[tuple[str, int], dict], how: dict
) -> Iterator[Callable[[dict], None]]:
  """Yields a function that writes a line of JSON to a partial file.

  However the body ends, the partial file then replaces the path if it has a line. A
  killed process leaves the partial file; its last line may be incomplete. A file of
  other continuations keeps them under another name, and a line says which.

  Args:
    before: records that must not be lost: if the body fails, those that it did not
      reach are written after its own.
    how: what all records that are written hold.
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
      for pair, record in before.items():
        if pair not in written:
          write(record)
      raise
    finally:
      file.close()
      if written:
        _move_others(path, written, how)
      partial.replace(path) if written else partial.unlink()


def _move_others(path: pathlib.Path, written: set[tuple[str, int]], how: dict) -> None:
  """Renames a file that holds what another command drew."""
  pairs = [
    (record.get("prompt"), record.get("index")) if how.items() <= record.items() else ()
    for record in _records(path)
  ]
  others = sum(pair not in written for pair in pairs)
  if others:
    names = (
      path.with_name(f"{path.stem}.{n}{path.suffix}") for n in itertools.count(1)
    )
    new = next(name for name in names if not name.exists())
    path.replace(new)
    progress.warn(f"what another command drew ({others}) is now in {new}")


def _stream(prompt: str):
  """Prints the prompt before the first piece; a refused prompt is not shown."""
  shown: list[bool] = []

  def show(texts: list[str]) -> None:
    print(("" if shown else prompt) + texts[0], end="", flush=True)
    shown.append(True)

  return show


def _show_logprobs(record: dict) -> None:
  """A tint behind each token, or a table where there are no colours."""
  found = list(zip(record["pieces"], record["logprobs"], strict=True))
  if not tint.show(found):
    for piece, logprob in found:
      print(f"  {logprob:9.4f}  {piece!r}")
  print()


def record_of(
  prompt: str,
  sample: text_generator.Sample,
  index: int,
  tokenizer: tokenizers.Tokenizer | None,
) -> dict:
  """What text.jsonl says of a continuation; of its tokens, if there is a tokenizer."""
  record: dict[str, Any] = {"prompt": prompt, "text": sample.text, "index": index}
  record["logprob"] = float(sample.logprobs.sum())
  if tokenizer is not None:
    record["tokens"] = sample.tokens.tolist()
    record["pieces"] = tint.pieces(tokenizer, record["tokens"])
    record["logprobs"] = sample.logprobs.tolist()
  return record
