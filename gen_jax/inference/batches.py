"""Many prompts from a file, continued together; what is drawn goes to text.jsonl."""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from gen_jax import rng
from gen_jax.inference import slots, text_generator, texts
from gen_jax.system import files, progress
from gen_jax.types import InputError


def read(path: pathlib.Path) -> list[str]:
  """The prompts of a file: its lines, or the field `prompt` of JSON records.

  Empty lines are passed over. Records are those of a file called .jsonl or .json.

  Raises:
    InputError: a file that cannot be read or has no prompt.
  """
  if path.name.endswith((".jsonl", ".json")):
    found = [prompt for (prompt,) in files.text_fields(path, "prompt")]
  else:
    found = [line for line in files.lines(files.read(path)) if line.strip()]
  if not found:
    raise InputError(f"--prompts {path} has no prompt; write one a line")
  return found


def write(
  folder: pathlib.Path,
  batch: slots.Slots,
  prompts: Sequence[str],
  num: int,
  how: dict[str, Any],
  *,
  read: Callable[[str], text_generator.Prompt] = lambda text: text,
  logprobs: bool = False,
) -> dict[str, Any]:
  """Writes `num` continuations of every prompt to text.jsonl, in their order.

  Continuation i of a prompt depends on it, (seed, i) and `how` alone. What an
  interrupted command with the same arguments drew is kept. See `texts.write`.

  Raises:
    InputError: a prompt that cannot be continued, before anything is drawn.
  """
  how = json.loads(json.dumps(how))
  tokenizer = batch.writer.tokenizer if logprobs else None
  path, keys = folder / "text.jsonl", rng.sample_keys(how["seed"], num)
  pairs = [(prompt, i) for prompt in prompts for i in range(num)]
  before = texts.drawn_before(path, how)
  found = {pair: before[pair] for pair in pairs if pair in before}
  todo = [pair for pair in dict.fromkeys(pairs) if pair not in found]
  ids = _ids(batch.writer, dict.fromkeys(prompt for prompt, _ in todo), read)
  jobs = [batch.job(ids[prompt], keys[i]) for prompt, i in todo]
  done, total = len(found), len({*pairs})
  with texts.appending(path, found, how) as write:
    for record in found.values():
      write(record)
    drawn = batch.run(jobs)
    for number, sample in progress.track(drawn, total, "continuations", done):
      prompt, i = todo[number]
      record = {**texts.record_of(prompt, sample, i, tokenizer), **how}
      found[prompt, i] = record
      write(record)
  samples = [found[pair] for pair in pairs]
  if jax.process_index() == 0:
    files.write(path, "".join(json.dumps(record) + "\n" for record in samples))
  print(f"{len(samples)} continuations in {path}")
  return {"samples": samples, "path": str(path)}


def _ids(writer, prompts, read) -> dict[str, list[int]]:
  """{prompt: its tokens}; InputError names the prompt that cannot be continued."""
  found = {}
  for prompt in prompts:
    try:
      found[prompt] = writer.ids(read(prompt))
    except InputError as error:
      raise InputError(f"prompt {prompt!r:.60}: {error}") from None
  return found
