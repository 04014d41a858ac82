"""Chat templates: messages to the text that a model was trained to answer.

A template comes with a tokenizer's files and is somebody else's program in the Jinja
language. It is rendered as `transformers` does, in a sandbox (`data.sandbox`): it sees
the messages, the names of the control tokens and the date, can change nothing and
reach nothing else. `{% generation %}` marks what of its text is an answer.
"""

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NewType

import jinja2
import jinja2.ext
from jinja2 import nodes

from gen_jax.data import sandbox
from gen_jax.types import InputError, one_line

Message = Mapping[str, str]  # role: system, user or assistant; content
Template = NewType("Template", str)
# Three code points that are no characters, and so in no message. GUARD within the name
# of a control token keeps it text; OPEN and CLOSE stand around answers.
GUARD, OPEN, CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
# The day of training data: the same messages give the same tokens on every day. It is
# the one that Llama 3's templates name for want of another.
TRAINING_DAY = datetime.datetime(2024, 7, 26)

# For models that come without a template. The headings are those of Taori et al. 2023
# (github.com/tatsu-lab/stanford_alpaca), whose opening sentence is left out.
ALPACA = Template(
  "{{ bos_token }}{% for m in messages %}"
  "{% if m.role == 'assistant' %}{{ m.content }}{{ eos_token }}"
  "{% elif m.role == 'system' %}{{ m.content ~ '\n\n' }}"
  "{% else %}{{ '### Instruction:\n' ~ m.content ~ '\n\n### Response:\n' }}"
  "{% endif %}{% endfor %}"
)
# A question, a blank line, its answer: for small models that learn one thing.
PLAIN = Template(
  "{{ bos_token }}{% for m in messages %}"
  "{% if m.role == 'assistant' %}{{ m.content }}{{ eos_token }}"
  "{% else %}{{ m.content ~ '\n\n' }}{% endif %}{% endfor %}"
)


def check(messages: Sequence[Message]) -> None:
  """Raises InputError unless there are messages, each with a role and a content."""
  if not messages:
    raise InputError("there are no messages; at least one is needed")
  for i, message in enumerate(messages):
    for key in ("role", "content"):
      if not isinstance(message, Mapping) or not isinstance(message.get(key), str):
        shown = " ".join(repr(message).split())[:80]
        raise InputError(f"message {i + 1}, {shown}, has no {key} that is text")
    texts = (value for value in message.values() if isinstance(value, str))
    if found := re.search(f"[{GUARD}{OPEN}{CLOSE}]", "".join(texts)):
      code = f"U+{ord(found[0]):04X}"
      raise InputError(
        f"message {i + 1} holds {code}, which is no character; delete it"
      )


def _refuse(reason: str) -> None:
  raise jinja2.TemplateError(reason)


def _to_json(
  value: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  """JSON for a model, not for HTML as Jinja's own; keys in their order."""
  text = json.dumps(
    value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys
  )
  if not ensure_ascii:
    return text
  return re.sub(f"[^\x00-\x7e{GUARD}]", lambda m: json.dumps(m[0])[1:-1], text)


class _Generation(jinja2.ext.Extension):
  """{% generation %} ... {% endgeneration %}, which stand around an answer."""

  tags = frozenset({"generation"})

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    return nodes.CallBlock(self.call_method("_marked"), [], [], body, lineno=line)

  def _marked(self, caller) -> str:
    return f"{OPEN}{caller()}{CLOSE}"


@functools.lru_cache(maxsize=8)  # a data set renders one template for every message
def _compiled(template: str) -> jinja2.Template:
  extensions = [_Generation, "jinja2.ext.loopcontrols"]
  return sandbox.Environment({"tojson": _to_json}, extensions).from_string(template)


def marks_answers(template: str) -> bool:
  """Whether a template says with {% generation %} what an answer is."""
  return re.search(r"\{%[-+]?\s*generation\b", template) is not None


def render(
  template: str,
  messages: Sequence[Message],
  add_generation_prompt: bool,
  now: datetime.datetime | None = None,
  **names: str,
) -> list[tuple[str, bool]]:
  """The text of a conversation in parts, and whether each is marked as an answer.

  Args:
    template: in the Jinja language.
    add_generation_prompt: end with what opens an answer.
    now: the time that a template may ask for; None is the clock's.
    names: bos_token, eos_token and others that there are.

  Raises:
    InputError: the template is damaged, refuses these messages, or goes beyond the
      limits of `data.sandbox`.
  """
  now = now or datetime.datetime.now()
  given = {"messages": messages, "add_generation_prompt": add_generation_prompt}
  try:
    text = sandbox.render(
      _compiled(template),
      {
        **given,
        "tools": None,
        "documents": None,
        "raise_exception": _refuse,
        "strftime_now": now.strftime,
        **names,
      },
    )
  except Exception as error:  # a template can raise anything
    raise InputError(
      f"the chat template cannot render {len(messages)} messages:"
      f" {one_line(error):.300}"
    ) from None
  return list(_parts(text))


def _parts(text: str):
  depth = 0
  for part in re.split(f"([{OPEN}{CLOSE}])", text):
    if part in (OPEN, CLOSE):
      depth += 1 if part == OPEN else -1
    elif part:
      yield part, depth > 0
