"""Prompts from strings: captions as tokens, names of classes as labels, or nothing.

Each function returns what reads N strings; "" is the null prompt.
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

  >>> names = ("zero", "one", "fire truck", "truck")
  >>> [label(text, names) for text in ("One", "1", "the digit one", "a Fire truck", "")]
  [1, 1, 1, 2, 4]

  Raises:
    InputError: no class, or more than one.
  """
  text = text.strip().casefold()
  known = [name.casefold() for name in names]
  if not text:
    return len(names)
  if text in known:
    return known.index(text)
  if text.isdecimal() and int(text) < len(names):
    return int(text)
  within = [name for name in known if re.search(rf"\b{re.escape(name)}\b", text)]
  # A name inside another one that was found says nothing.
  within = [n for n in within if not any(n != o and n in o for o in within)]
  if len(within) == 1:
    return known.index(within[0])
  near = difflib.get_close_matches(text[:80], known, n=1, cutoff=0.0)
  raise InputError(
    f"prompt {text!r:.80} names {'no' if not within else 'more than one'} class; the"
    f" nearest is {names[known.index(near[0])]!r}; there are {len(names)}, 0 is"
    f" {names[0]!r}"
  )


def nothing(texts: Sequence[str]) -> tuple[()]:
  """The prompt of an unconditional model, whatever the texts."""
  del texts
  return ()
