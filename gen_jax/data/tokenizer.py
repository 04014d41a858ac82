"""What a tokenizer is: one class over every format that `data.encodings` reads.

Ordinary text never becomes a control token, whatever it says; only `encode_special`
and the chat methods write them.
"""

import codecs
import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gen_jax.data import chat, encodings
from gen_jax.types import InputError

Messages = Sequence[chat.Message]
_GUARD = "\ufdd0"  # not a character: keeps what users write from being a control token


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
  """Any Unicode text survives the round trip (but see `characters`).

  Attributes:
    encoding: text to ids.
    bos: opens every document and prompt; None if the format has no such token.
    eos: ends a document; the same as bos for GPT-2's END_OF_TEXT.
    stops: ids that end what a model writes: eos, and ends of a turn.
    chat_template: of the model that the tokenizer came with.
    pad: fills captions up; None: eos does.
  """

  encoding: encodings.Encoding
  bos: int | None = None
  eos: int | None = None
  stops: tuple[int, ...] = ()
  chat_template: str | None = None
  pad: int | None = None

  @property
  def vocab_size(self) -> int:
    return len(self.encoding.pieces)

  @property
  def specials(self) -> Mapping[str, int]:
    """{name: id} of the control tokens."""
    return self.encoding.specials

  def encode(self, text: str) -> list[int]:
    """Tokens of `text`, nothing added; '<s>' in the text is plain text.

    Raises:
      InputError: text that is not Unicode (half of a surrogate pair).
    """
    check_unicode(text)
    return self.encoding.encode(self.encoding.prefix + text) if text else []

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` for many texts, in parallel where the format's library can."""
    for text in texts:
      check_unicode(text)
    prefix = self.encoding.prefix
    return self.encoding.encode_batch([prefix + text if text else "" for text in texts])

  def decode(self, ids: Iterable[int]) -> str:
    """Text of `ids`, control tokens left out; broken UTF-8 becomes U+FFFD."""
    return "".join(self.stream(ids)).removeprefix(self.encoding.prefix)

  def stream(self, ids: Iterable[int]) -> Iterator[str]:
    """Text of ids that continue others, each piece as soon as its characters are whole.

    The pieces together are `decode(ids)`, and before it the space with which
    SentencePiece formats open a text: after a prompt that space counts.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces = self.encoding.pieces
    for i in ids:  # a model may have more ids than the tokenizer: they are no text
      if text := decoder.decode(pieces[i] if i < len(pieces) else b""):
        yield text
    if text := decoder.decode(b"", final=True):
      yield text

  def token_bytes(self, size: int) -> np.ndarray:
    """int32 [size], bytes of text per token; 0 for control tokens and unused ids."""
    lengths = np.zeros(size, np.int32)
    lengths[: self.vocab_size] = [len(piece) for piece in self.encoding.pieces]
    return lengths

  @functools.cached_property
  def _special_names(self) -> re.Pattern:
    names = sorted(self.specials, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")

  def encode_special(self, text: str, after: str = "") -> list[int]:
    """Tokens of text in which the names of control tokens stand for them.

    Only for text that the program wrote: a chat template, never its messages.

    Args:
      after: what the text continues; its end decides whether a prefix is due.
    """
    return self._encode_special(text, after, "")

  def _encode_special(self, text: str, after: str, guard: str) -> list[int]:
    """`encode_special`, with `guard` taken out of what is not a control token."""
    check_unicode(text)
    ids, before = [], re.split(self._special_names, after)[-1]
    lead = self.encoding.inner_prefix if after else self.encoding.prefix
    if before:
      lead = ""
    for i, part in enumerate(re.split(self._special_names, text)):
      if i % 2:
        ids.append(self.specials[part])
        lead = self.encoding.inner_prefix
      elif part := part.replace(guard, ""):
        ids += self.encoding.encode(lead + part)
    return ids

  def chat(self, messages: Messages, add_generation_prompt: bool = True) -> str:
    """The messages as one text, by the tokenizer's own template.

    Raises:
      InputError: there is no template, or it refuses the messages.
    """
    if self.chat_template is None:
      raise InputError(
        "the tokenizer has no chat template; take one of a chat model, or put"
        " chat_template.jinja beside its files"
      )
    chat.check(messages)
    names = {id_: name for name, id_ in self.specials.items()}
    return chat.render(
      self.chat_template,
      messages,
      add_generation_prompt,
      bos_token=names.get(self.bos, ""),
      eos_token=names.get(self.eos, ""),
    )

  def encode_chat(
    self, messages: Messages, add_generation_prompt: bool = True
  ) -> list[int]:
    """Tokens of `chat`; control tokens are the template's, never the messages'.

    Whether bos is among them is the template's business as well.
    """
    text = self.chat(self._guarded(messages), add_generation_prompt)
    return self._encode_special(text, "", _GUARD)

  def encode_turns(self, messages: Messages) -> tuple[list[int], list[bool]]:
    """Tokens of a conversation up to its last answer, and which of them answer.

    What stands before an answer is encoded as a prompt on its own, as it is when the
    model is asked: tokens never reach over the border.

    Raises:
      InputError: see `chat`; or the template writes earlier turns anew in later ones.
    """
    messages = self._guarded(messages)
    ids, is_answer, done = [], [], ""
    for i, message in enumerate(messages):
      if message["role"] != "assistant":
        continue
      turns = ((messages[:i], True), (messages[: i + 1], False))
      for answers, (turn, add_generation_prompt) in enumerate(turns):
        text = self.chat(turn, add_generation_prompt) if turn else ""
        if not text.startswith(done):
          raise InputError(
            f"the chat template writes what stands before message {i + 1} in another"
            " way once the message is there: answers cannot be told from prompts"
          )
        new = self._encode_special(text[len(done) :], done, _GUARD)
        ids += new
        is_answer += [bool(answers)] * len(new)
        done = text
    return ids, is_answer

  def _guarded(self, messages: Messages) -> list[dict[str, str]]:
    """The messages, names of control tokens in them broken up by _GUARD."""

    def guard(text: str) -> str:
      return self._special_names.sub(lambda m: m[0][0] + _GUARD + m[0][1:], text)

    chat.check(messages)
    return [
      {key: guard(m[key]) if isinstance(m[key], str) else m[key] for key in m}
      for m in messages
    ]

  def files(self) -> dict[str, bytes]:
    """The files of a folder that `load` makes this tokenizer of."""
    names = {id_: name for name, id_ in self.specials.items()}
    config: dict[str, Any] = {
      "bos_token": names.get(self.bos),
      "eos_token": names.get(self.eos),
    }
    if self.chat_template is not None:
      config["chat_template"] = self.chat_template
    stops = {"eos_token_id": list(self.stops)}
    return {
      "tokenizer_config.json": json.dumps(config, indent=2).encode(),
      **({"generation_config.json": json.dumps(stops).encode()} if self.stops else {}),
      **self.encoding.files(),
    }

  @functools.cached_property
  def fingerprint(self) -> str:
    """A hash of everything that decides which ids a document has."""
    digest = hashlib.sha256(f"{self.bos} {self.eos}".encode())
    for name, content in sorted(self.encoding.files().items()):
      digest.update(f"\n{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()

  def save(self, folder: pathlib.Path) -> None:
    """Writes the files into a folder, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in self.files().items():
      partial = folder / f"{name}.partial"
      partial.write_bytes(content)
      partial.replace(folder / name)


def check_unicode(text: str) -> None:
  """Raises InputError for half of a surrogate pair, which no encoding can write."""
  try:
    text.encode()
  except UnicodeEncodeError:
    shown = repr(text if len(text) <= 40 else f"{text[:40]}...")
    raise InputError(f"{shown} is not valid Unicode text") from None
