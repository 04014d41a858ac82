"""Chat templates: messages to the model's prompt format.

A template comes with a tokenizer's files and is an untrusted program in the Jinja
language. It is rendered as in `transformers`, in a sandbox (`data.sandbox`): it can
read the messages, the names of control tokens and the date, and nothing else.
`{% generation %}` marks answers.
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
from gen_jax.errors import InputError, one_line

Message = Mapping[str, str]  # role: system, user or assistant; content
Template = NewType("Template", str)
# Three noncharacters, which no message contains. GUARD inside the name of a control
# token keeps it text; OPEN and CLOSE enclose answers.
GUARD, OPEN, CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
# The date in training data, so that messages always give the same tokens: the default
# date of Llama 3's templates.
TRAINING_DAY = datetime.datetime(2024, 7, 26)

# For models without a template. Headings as in Taori et al. 2023
# (github.com/tatsu-lab/stanford_alpaca), without its opening sentence.
ALPACA = Template(
  "{{ bos_token }}{% for m in messages %}"
  "{% if m.role == 'assistant' %}{{ m.content }}{{ eos_token }}"
  "{% elif m.role == 'system' %}{{ m.content ~ '\n\n' }}"
  "{% else %}{{ '### Instruction:\n' ~ m.content ~ '\n\n### Response:\n' }}"
  "{% endif %}{% endfor %}"
)
# A question, a blank line, its answer: for small models of a single task.
PLAIN = Template(
  "{{ bos_token }}{% for m in messages %}"
  "{% if m.role == 'assistant' %}{{ m.content }}{{ eos_token }}"
  "{% else %}{{ m.content ~ '\n\n' }}{% endif %}{% endfor %}"
)


def check(messages: Sequence[Message]) -> None:
  """Raises InputError unless there are messages, each with a role and content."""
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
      raise InputError(f"message {i + 1} contains {code}, a noncharacter; delete it")


def _refuse(reason: str) -> None:
  raise jinja2.TemplateError(reason)


def _to_json(
  value: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  """JSON without Jinja's HTML escapes; keys in their order."""
  text = json.dumps(
    value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys
  )
  if not ensure_ascii:
    return text
  return re.sub(f"[^\x00-\x7e{GUARD}]", lambda m: json.dumps(m[0])[1:-1], text)


class _Generation(jinja2.ext.Extension):
  """{% generation %} ... {% endgeneration %}, which enclose an answer."""

  tags = frozenset({"generation"})

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    return nodes.CallBlock(self.call_method("_marked"), [], [], body, lineno=line)

  def _marked(self, caller) -> str:
    return f"{OPEN}{caller()}{CLOSE}"


@functools.lru_cache(maxsize=8)  # a data set renders one template many times
def _compiled(template: str) -> jinja2.Template:
  extensions = [_Generation, "jinja2.ext.loopcontrols"]
  return sandbox.Environment({"tojson": _to_json}, extensions).from_string(template)


def marks_answers(template: str) -> bool:
  """Whether a template marks answers with {% generation %}."""
  return re.search(r"\{%[-+]?\s*generation\b", template) is not None


def render(
  template: str,
  messages: Sequence[Message],
  add_generation_prompt: bool,
  now: datetime.datetime | None = None,
  **names: str,
) -> list[tuple[str, bool]]:
  """A conversation's text in parts, each with whether it is marked as an answer.

  Args:
    template: in the Jinja language.
    add_generation_prompt: end with the opening of an answer.
    now: time that a template may read; None: the current time.
    names: bos_token, eos_token and the like.

  Raises:
    InputError: the template is damaged, refuses these messages, or exceeds the limits
      of `data.sandbox`.
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
