"""A chat in the terminal, or lines that a model without a template continues."""

import contextlib
import re
import signal
import sys
from collections.abc import Iterator

from gen_jax import errors, rng
from gen_jax.inference import text_generator
from gen_jax.system import progress, signals
from gen_jax.types import InputError, Params

COMMANDS = {
  "/help": "this list",
  "/reset": "forget what was said",
  "/system": "/system TEXT: what the model is told first; no TEXT: nothing",
  "/exit": "leave, as Ctrl-D does",
}
_KEYS = "Ctrl-C stops an answer, or clears the line; twice at a prompt: leaves."


class _Chat:
  """What was said: messages of a chat, or the last line where there is no template."""

  def __init__(self, writer: text_generator.TextGenerator, system: str | None):
    self._writer, self.system = writer, system
    self.is_chat = writer.tokenizer.chat_template is not None
    self.messages: list[dict[str, str]] = []
    self.check(system)

  def check(self, system: str | None) -> None:
    """Raises InputError for a system prompt without a template that renders it."""
    if system:
      opening = [{"role": "system", "content": system}]
      self._writer.tokenizer.encode_chat([*opening, {"role": "user", "content": ""}])

  def prompt(self, line: str) -> text_generator.Prompt:
    """What the model continues; the oldest turns go if the context is too short."""
    if not self.is_chat:
      return line
    self.messages.append({"role": "user", "content": line})
    how, context = self._writer.sampling, self._writer.model.config.max_length
    opening = [{"role": "system", "content": self.system}] if self.system else []
    while True:
      ids = self._writer.tokenizer.encode_chat([*opening, *self.messages])
      if len(ids) <= context - min(32, how.max_tokens) or len(self.messages) < 3:
        return ids
      progress.warn("the oldest turn is forgotten")
      del self.messages[:2]

  def answered(self, answer: str | None) -> None:
    """Notes the answer to the last line; None: there is none, the line is forgotten."""
    if not self.is_chat:
      return
    if answer is None:
      self.messages = self.messages[:-1]
    else:
      self.messages.append({"role": "assistant", "content": answer})

  def command(self, line: str) -> None:
    """Does what a line with a command says."""
    name, _, rest = line.strip().partition(" ")
    if name == "/help":
      print("\n".join(f"  {n:9} {what}" for n, what in COMMANDS.items()))
      print(f"  {_KEYS}")
    elif name == "/reset":
      self.messages = []
    elif name == "/system":
      self.check(rest.strip())
      self.system = rest.strip() or None
    else:
      raise errors.unknown("command", name, COMMANDS)


def talk(
  writer: text_generator.TextGenerator,
  params: Params,
  seed: int,
  system: str | None = None,
) -> dict[str, int]:
  """Reads lines and answers them, as a chat if there is a template.

  Answer i depends on (seed, i) and on what was said.

  Args:
    system: what a chat's model is told first.

  Raises:
    InputError: a system prompt for a model without a chat template.
  """
  chat, num = _Chat(writer, system), 0
  print("a chat" if chat.is_chat else "continues what you type", "(/help, /exit)")
  for line in _lines():
    is_command = re.fullmatch(r"\s*(/[a-z]+|/system\s.*)\s*", line)
    try:
      if is_command:
        chat.command(line)
      else:
        key = rng.sample_keys(seed, 1, num)[0]
        chat.answered(_answer(writer.stream(params, chat.prompt(line), key)))
    except InputError as error:  # the chat goes on
      if not is_command:
        chat.answered(None)
      progress.warn(str(error))
    num += not is_command
  print()
  return {"answers": num}


def _lines() -> Iterator[str]:
  """Yields what is typed, with line editing in a terminal, up to /exit or the end."""
  if sys.stdin.isatty() and sys.stdout.isatty():  # it writes to a pipe otherwise
    with contextlib.suppress(ImportError):  # a Python without it
      import readline  # noqa: F401 (`input` edits lines by it)
  is_leaving = False
  while True:
    try:
      line = input("> ")
    except EOFError:
      return
    except signals.Interrupted:
      if signals.asked() != signal.SIGINT:
        raise
      signals.forget()
      if is_leaving:
        return
      is_leaving = True
      print("\n(Ctrl-C again, or /exit, leaves)")
      continue
    if line.strip() == "/exit":
      return
    is_leaving = False
    yield line


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
