"""Prompts from strings: captions to tokens, names of classes to labels, or nothing.

Each function returns a `Read`; "" is the null prompt.
"""

import difflib
import re
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from gen_jax.data import pipeline, tokenizers
from gen_jax.tasks import conditioning
from gen_jax.types import InputError, PyTree

Read = Callable[[Sequence[str]], PyTree]  # N strings -> arrays [N, ...]


def captions(tokenizer: tokenizers.Tokenizer, length: int) -> Read:
  """Reads captions of at most `length` tokens; InputError for a longer one."""

  def read(texts: Sequence[str]) -> conditioning.Caption:
    for text in texts:
      num = len(pipeline.caption_ids(text, tokenizer))
      if num > length:
        raise InputError(
          f"prompt {text!r} has {num} tokens; the text encoder reads {length}: shorten"
          " it"
        )
    tokens, mask = zip(
      *(pipeline.pad_caption(text, tokenizer, length) for text in texts), strict=True
    )
    return conditioning.Caption(jnp.asarray(np.stack(tokens)), jnp.stack(mask))

  return read


def labels(names: Sequence[str]) -> Read:
  """Reads classes: a name, its number, or a text with the name of one class in it."""

  def read(texts: Sequence[str]) -> jnp.ndarray:
    return jnp.asarray([label(text, names) for text in texts], jnp.int32)

  return read


def label(text: str, names: Sequence[str]) -> int:
  """The class that a text names; len(names) for "".

  >>> names = ("zero", "one", "fire truck, fire engine", "truck")
  >>> [label(text, names) for text in ("One", "1", "the digit one", "a Fire truck", "")]
  [1, 1, 1, 2, 4]

  Args:
    names: of each class; several for one are separated by a comma and a space.

  Raises:
    InputError: no class, or more than one.
  """
  text = text.strip().casefold()
  if not text:
    return len(names)
  numbers: dict[str, set[int]] = {}
  for number, name in enumerate(map(str.casefold, names)):
    for alias in (name, *name.split(", ")):
      numbers.setdefault(alias, set()).add(number)
  found = numbers.get(text, set())
  if not found and text.isdecimal() and int(text) < len(names):
    return int(text)
  if not found:
    within = [name for name in numbers if re.search(rf"\b{re.escape(name)}\b", text)]
    # A name that is part of a longer name found does not count.
    within = [n for n in within if not any(n != o and n in o for o in within)]
    found = set().union(*(numbers[name] for name in within))
  if len(found) == 1:
    return found.pop()
  if found:
    listed = " and ".join(f"{i} ({names[i]})" for i in sorted(found)[:2])
    raise InputError(f"prompt {text!r:.80} names more than one class: {listed:.200}")
  near = difflib.get_close_matches(text[:80], numbers, n=1, cutoff=0.0)[0]
  raise InputError(
    f"prompt {text!r:.80} names no class; the nearest is {near!r}; there are"
    f" {len(names)}, 0 is {names[0]!r}"
  )


def nothing(texts: Sequence[str]) -> tuple[()]:
  """The empty prompt of an unconditional model, for any texts."""
  del texts
  return ()
