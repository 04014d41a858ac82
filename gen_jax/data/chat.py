"""Chat templates: messages to the text that a model was trained to answer.

A template comes with a tokenizer's files and is somebody else's program in the Jinja
language. It is rendered in Jinja's immutable sandbox: it sees the messages and the
names of the control tokens, can change nothing and reach nothing else; not even the
date, so that the same messages always give the same text.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NewType

import jinja2
import jinja2.sandbox

from gen_jax.types import InputError

Message = Mapping[str, str]  # role: system, user or assistant; content
Template = NewType("Template", str)

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


def _refuse(reason: str) -> None:
  raise jinja2.TemplateError(reason)


@functools.lru_cache(maxsize=8)  # a data set renders one template for every message
def _compiled(template: str) -> jinja2.Template:
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
  )
  return environment.from_string(template)


def render(
  template: str, messages: Sequence[Message], add_generation_prompt: bool, **names: str
) -> str:
  """The text of a conversation.

  Args:
    template: in the Jinja language.
    add_generation_prompt: end with what opens an answer.
    names: bos_token and eos_token.

  Raises:
    InputError: the template is damaged, or refuses these messages.
  """
  try:
    return _compiled(template).render(
      messages=messages,
      add_generation_prompt=add_generation_prompt,
      raise_exception=_refuse,
      **names,
    )
  except Exception as error:  # a template can raise anything
    reason = " ".join(str(error).split()) or type(error).__name__
    raise InputError(
      f"the chat template cannot render {len(messages)} messages: {reason}"
    ) from None
