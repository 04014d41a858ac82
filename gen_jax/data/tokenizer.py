"""The tokenizer: one class over every format that `data.encodings` reads.

Ordinary text never becomes a control token; only `encode_special` and the chat methods
write them.
"""

import codecs
import dataclasses
import datetime
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gen_jax.data import chat, encoding
from gen_jax.errors import InputError
from gen_jax.system import files

Messages = Sequence[chat.Message]


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
  """Text to ids and back.

  Any Unicode text survives the round trip, up to the format's normalisation (NFC, lower
  case, spaces); see also `characters`.

  Attributes:
    encoding: text to ids.
    bos: beginning-of-sequence token; None if the format has none.
    eos: ends a document; the same as bos for GPT-2's END_OF_TEXT.
    opening: ids put before every text, as by the format's library.
    closing: ids put after it.
    stops: ids that end generation: eos, and ends of a turn.
    chat_template: the model's, in Jinja.
    pad: pads captions; None: eos does.
  """

  encoding: encoding.Encoding
  bos: int | None = None
  eos: int | None = None
  opening: tuple[int, ...] = ()
  closing: tuple[int, ...] = ()
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

  @property
  def prefix(self) -> str:
    """What is prepended to every text: SentencePiece's space, or nothing."""
    return self.encoding.prefix

  @property
  def shares_marks(self) -> bool:
    """Whether one token ends a document and opens the next one, as in GPT-2."""
    return self.eos is not None and self.opening == (self.eos,)

  def opens(self, text: str) -> tuple[int, ...]:
    """Ids before a text to continue or score: `opening`; bos if both are empty."""
    alone = () if text or self.bos is None else (self.bos,)
    return self.opening or alone

  def ends(self) -> tuple[int, ...]:
    """Ids that end a training document: `closing`, else eos.

    Empty if the next document's opening is also this one's end.
    """
    return self.closing or (
      () if self.eos is None or self.shares_marks else (self.eos,)
    )

  def encode(self, text: str) -> list[int]:
    """Tokens of `text`, nothing added; '<s>' in the text is plain text.

    Raises:
      InputError: text that is not Unicode (half of a surrogate pair).
    """
    check_unicode(text)
    return self.encoding.encode(text) if text else []

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` for many texts, in parallel if the format's library supports it."""
    for text in texts:
      check_unicode(text)
    found = self.encoding.encode_batch(texts)
    return [ids if text else [] for text, ids in zip(texts, found, strict=True)]

  def decode(self, ids: Iterable[int]) -> str:
    """Text of `ids`, control tokens left out; broken UTF-8 becomes U+FFFD."""
    return "".join(self.decode_pieces(ids)).removeprefix(self.prefix)

  def piece(self, i: int) -> bytes:
    """UTF-8 text of an id, maybe a part of a character; of an unknown id nothing.

    A model may have more ids than its tokenizer.
    """
    pieces = self.encoding.pieces
    return pieces[i] if i < len(pieces) else b""

  def decode_pieces(self, ids: Iterable[int]) -> Iterator[str]:
    """Text of ids that continue others, in pieces of whole characters.

    The pieces together are `decode(ids)`, preceded by the space that SentencePiece
    prepends to texts: after a prompt that space counts.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for i in ids:
      if text := decoder.decode(self.piece(i)):
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
    return re.compile("|".join(map(re.escape, names)) or "(?!)")

  @functools.cached_property
  def _controls(self) -> re.Pattern:
    # A name of one character cannot be split by GUARD: it stays text.
    names = sorted((n for n in self.specials if len(n) > 1), key=len, reverse=True)
    patterns = (self.encoding.patterns.get(name, re.escape(name)) for name in names)
    return re.compile(f"({'|'.join(patterns) or '(?!)'})")

  def encode_special(self, text: str, after: str = "") -> list[int]:
    """Tokens of text in which names of control tokens become these tokens.

    Only for trusted text: a chat template, never its messages.

    Args:
      after: the text before it, whose end decides whether a space is prepended.
    """
    return self._encode_special(text, after, "")

  def _encode_special(self, text: str, after: str, guard: str) -> list[int]:
    """`encode_special`, with `guard` removed from ordinary text."""
    check_unicode(text)
    ids, before = [], re.split(self._controls, after)[-1]
    encode = self.encoding.encode_inner if after else self.encoding.encode
    if before:
      encode = self.encoding.encode_rest
    for i, part in enumerate(re.split(self._controls, text)):
      if i % 2:
        ids.append(self.specials[part if part in self.specials else part.strip()])
        encode = self.encoding.encode_inner
      elif part := part.replace(guard, ""):
        ids += encode(part)
    return ids

  def _rendered(
    self,
    messages: Messages,
    add_generation_prompt: bool,
    now: datetime.datetime | None = None,
  ) -> list[tuple[str, bool]]:
    if self.chat_template is None:
      raise InputError(
        "the tokenizer has no chat template; use the tokenizer of a chat model, or add"
        " chat_template.jinja to its files"
      )
    names = {id_: name for name, id_ in self.specials.items()}
    marks = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad}
    return chat.render(
      self.chat_template,
      messages,
      add_generation_prompt,
      now,
      **{key: names[id_] for key, id_ in marks.items() if id_ in names},
    )

  def chat(self, messages: Messages, add_generation_prompt: bool = True) -> str:
    """The messages as one text, by the tokenizer's template.

    Raises:
      InputError: no template, or it refuses the messages.
    """
    chat.check(messages)
    return "".join(part for part, _ in self._rendered(messages, add_generation_prompt))

  def encode_chat(
    self,
    messages: Messages,
    add_generation_prompt: bool = True,
    now: datetime.datetime | None = None,
  ) -> list[int]:
    """Tokens of `chat`; control tokens, bos included, come only from the template.

    Args:
      now: see `chat.render`.
    """
    parts = self._rendered(self._guarded(messages), add_generation_prompt, now)
    return self._encode_special("".join(part for part, _ in parts), "", chat.GUARD)

  def encode_turns(self, messages: Messages) -> tuple[list[int], list[bool]]:
    """Tokens of a conversation up to its last answer, and which of them are answers.

    An answer is what the template marks with {% generation %}, else what an assistant's
    message adds to the prompt before it. Prompt and answer are encoded separately, as
    in generation: no token spans both. The date in it is `chat.TRAINING_DAY`.

    Raises:
      InputError: see `chat`; the template marks nothing, or renders earlier turns
        differently in later ones.
    """
    messages = self._guarded(messages)
    is_marked = chat.marks_answers(self.chat_template or "")
    parts = self._marked_parts(messages) if is_marked else self._turns(messages)
    ids, is_answer, done = [], [], ""
    for part, answers in parts:
      new = self._encode_special(part, done, chat.GUARD)
      ids += new
      is_answer += [answers] * len(new)
      done += part
    return ids, is_answer

  def _marked_parts(self, messages: Messages) -> list[tuple[str, bool]]:
    last = max(
      (i for i, m in enumerate(messages) if m["role"] == "assistant"), default=0
    )
    parts = self._rendered(messages[: last + 1], False, chat.TRAINING_DAY)
    if not any(answers for _, answers in parts):
      raise InputError(
        f"the chat template marks no answer in {len(messages)} messages, although it"
        " has {% generation %}"
      )
    return parts

  def _turns(self, messages: Messages) -> Iterator[tuple[str, bool]]:
    done = ""
    for i, message in enumerate(messages):
      if message["role"] != "assistant":
        continue
      turns = ((messages[:i], True), (messages[: i + 1], False))
      for answers, (turn, is_prompt) in enumerate(turns):
        parts = self._rendered(turn, is_prompt, chat.TRAINING_DAY) if turn else []
        text = "".join(part for part, _ in parts)
        if not text.startswith(done):
          raise InputError(
            f"the chat template renders the text before message {i + 1} differently"
            " with and without it: answers cannot be told from prompts"
          )
        yield text[len(done) :], bool(answers)
        done = text

  def _guarded(self, messages: Messages) -> list[dict[str, str]]:
    """The messages, with GUARD inside the names of control tokens."""

    def guard(text: str) -> str:
      return self._special_names.sub(lambda m: m[0][0] + chat.GUARD + m[0][1:], text)

    chat.check(messages)
    return [
      {key: guard(m[key]) if isinstance(m[key], str) else m[key] for key in m}
      for m in messages
    ]

  def files(self) -> dict[str, bytes]:
    """{file name: content} from which `load` makes this tokenizer."""
    names = {id_: name for name, id_ in self.specials.items()}
    config: dict[str, Any] = {
      "bos_token": names.get(self.bos),
      "eos_token": names.get(self.eos),
      **self.encoding.settings(),
    }
    if self.pad is not None:
      piece = self.encoding.pieces[self.pad]
      config["pad_token"] = names.get(self.pad) or piece.decode()
    if self.chat_template is not None:
      config["chat_template"] = self.chat_template
    for key, ids, own in (
      ("add_bos_token", self.opening, self.encoding.opening),
      ("add_eos_token", self.closing, self.encoding.closing),
    ):
      if ids != own:  # else the vocabulary's file has it
        config[key] = bool(ids)
    stops = {"eos_token_id": list(self.stops)}
    return {
      "tokenizer_config.json": json.dumps(config, indent=2).encode(),
      **({"generation_config.json": json.dumps(stops).encode()} if self.stops else {}),
      **self.encoding.files(),
    }

  @functools.cached_property
  def fingerprint(self) -> str:
    """A hash of everything that determines the ids of a document."""
    marks = f"{self.bos} {self.eos} {self.opening} {self.closing}"
    marks += json.dumps(self.encoding.settings(), sort_keys=True)
    digest = hashlib.sha256(marks.encode())
    for name, content in sorted(self.encoding.files().items()):
      digest.update(f"\n{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()

  def save(self, folder: pathlib.Path) -> None:
    """Writes the files into a folder, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in self.files().items():
      files.write_bytes(folder / name, content)


def check_unicode(text: str) -> None:
  """Raises InputError for half of a surrogate pair, which UTF-8 cannot encode."""
  try:
    text.encode()
  except UnicodeEncodeError:
    shown = repr(text if len(text) <= 40 else f"{text[:40]}...")
    raise InputError(f"{shown} is not valid Unicode text") from None
