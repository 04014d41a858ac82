"""Sources of conversations: instructions and answers, chats, parallel texts.

A source gives `conversations(split)`, sequences of messages as in `data.chat`, each
with an answer. Any text-to-text task (translation, summarisation) is a source: its
input is the prompt, its output the answer.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from gen_jax import ranges
from gen_jax.data import chat, sources
from gen_jax.errors import InputError
from gen_jax.system import files, globs

Messages = list[chat.Message]


class ConversationSource(Protocol):
  """Conversations, each with an answer."""

  def conversations(self, split: str) -> Sequence[Messages]:
    """All conversations of 'train' or 'validation'."""

  def identity(self) -> str:
    """A string that changes with the source's files; its fields need not be in it."""


def ask(question: str, answer: str) -> Messages:
  """One question, one answer."""
  return [
    {"role": "user", "content": question},
    {"role": "assistant", "content": answer},
  ]


def _chosen(
  conversations: Iterable[Messages], split: str, fraction: float, pattern: str
) -> list[Messages]:
  """One split, without the duplicates of instruction data: none is in both splits."""
  unique = {repr(messages): messages for messages in conversations}
  everything = list(unique.values())
  if not everything:
    raise InputError(f"no conversations in {pattern!r}; give other files")
  return [everything[i] for i in sources.held_out(len(everything), split, fraction)]


@dataclasses.dataclass(frozen=True)
class Alpaca(sources.Matching):
  """Stanford Alpaca's format, {"instruction", "input", "output"}: JSON array or JSONL.

  The input follows the instruction. Source: Taori et al. 2023,
  github.com/tatsu-lab/stanford_alpaca.
  """

  pattern: str
  validation_fraction: ranges.ProperFraction = 0.1

  def conversations(self, split: str) -> Sequence[Messages]:
    found = (_alpaca(row, where) for where, row in _rows(self.pattern))
    return _chosen(found, split, self.validation_fraction, self.pattern)


def _rows(pattern: str) -> Iterator[tuple[str, dict[str, Any]]]:
  for path in globs.matching(pattern):
    yield from files.records(path)


def _alpaca(row: dict[str, Any], where: str) -> Messages:
  instruction, output = (
    files.text(files.field(row, name, where), where)
    for name in ("instruction", "output")
  )
  below = "" if row.get("input") is None else files.text(row["input"], where)
  return ask(f"{instruction}\n\n### Input:\n{below}" if below else instruction, output)


@dataclasses.dataclass(frozen=True)
class Chats(sources.Matching):
  """JSONL of {"messages": [{"role", "content"}, ...]}, the format of chat services."""

  pattern: str
  field: str = "messages"
  validation_fraction: ranges.ProperFraction = 0.1

  def conversations(self, split: str) -> Sequence[Messages]:
    found = (_chat(row, self.field, where) for where, row in _rows(self.pattern))
    return _chosen(found, split, self.validation_fraction, self.pattern)


# Fields of chat services that would change the text or the loss.
_NOT_READ = ("tools", "functions", "tool_calls", "function_call", "reasoning_content")


def _check_read(fields: Mapping[str, Any], where: str) -> None:
  """Raises InputError for fields that training would ignore silently."""
  for name in _NOT_READ:
    if fields.get(name):
      raise InputError(f"{where}: {name} are not trained on; remove them")
  if fields.get("weight") not in (None, 1):
    raise InputError(
      f"{where}: weight {fields['weight']!r:.20} is not read: every answer counts;"
      " remove it, or the answer"
    )


def _chat(row: Mapping[str, Any], field: str, where: str) -> Messages:
  messages = files.field(row, field, where)
  if not isinstance(messages, list):
    raise InputError(f"{where}: its messages are {messages!r:.80}; a list is needed")
  try:
    chat.check(messages)
  except InputError as error:
    raise InputError(f"{where}: {error}") from None
  if not any(message["role"] == "assistant" for message in messages):
    raise InputError(f"{where}: no message has the role assistant, so no answer")
  for fields in (row, *messages):
    _check_read(fields, where)
  texts = (files.text(message["content"], where) for message in messages)
  return [
    {"role": m["role"], "content": t} for m, t in zip(messages, texts, strict=True)
  ]


@dataclasses.dataclass(frozen=True)
class Parallel:
  """Two files of parallel lines, such as texts and their translations.

  Attributes:
    source: file of prompts, one a line (train.en).
    target: file of answers (train.de).
    instruction: put before each prompt; empty for none.
  """

  source: str
  target: str
  instruction: str = ""
  validation_fraction: ranges.ProperFraction = 0.05

  def __post_init__(self) -> None:
    ranges.check(self)

  def _paths(self) -> tuple[pathlib.Path, pathlib.Path]:
    found = [globs.matching(pattern) for pattern in (self.source, self.target)]
    for pattern, paths in zip((self.source, self.target), found, strict=True):
      if len(paths) > 1:
        raise InputError(f"{pattern!r} names {len(paths)} files; one is needed")
    return found[0][0], found[1][0]

  def conversations(self, split: str) -> Sequence[Messages]:
    questions, answers = (files.lines(files.read(path)) for path in self._paths())
    if len(questions) != len(answers):
      raise InputError(
        f"{self.source} has {len(questions)} lines, {self.target} {len(answers)}: they"
        " must be equal"
      )
    above = f"{self.instruction}\n\n" if self.instruction else ""
    pairs = zip(questions, answers, strict=True)
    found = (ask(above + q.strip(), a.strip()) for q, a in pairs if q.strip())
    return _chosen(found, split, self.validation_fraction, self.source)

  def identity(self) -> str:
    return files.stamps(self._paths())
