"""Prompts in, text out: the strings around the compiled decoding loop."""

import codecs
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from gen_jax import tree
from gen_jax.data import tokenizers
from gen_jax.decoding import generate
from gen_jax.models import transformer
from gen_jax.types import Array, InputError, Params


def bucket(length: int) -> int:
  """The next power of two, at least 16: few prompt lengths need few compilations."""
  return max(16, 1 << (length - 1).bit_length())


Prompt = str | Sequence[int]
Likeliest = tuple[list[int], list[float]]  # ids, and their log-probabilities


@dataclasses.dataclass(frozen=True)
class Sample:
  """One continuation, without its prompt.

  Attributes:
    text: up to the first stop token or stop text.
    tokens: int32 [T], all that were drawn, with the stop token.
    logprobs: float32 [T], log-probability of each before any filter.
  """

  text: str
  tokens: np.ndarray
  logprobs: np.ndarray


class Row:
  """An unfinished continuation: its tokens, and the text that is safe to show.

  Attributes:
    tokens, logprobs: all that were drawn.
    likeliest: of each, the ids of the likeliest tokens and their log-probabilities,
      where those were asked for.
    prompt: where its scores were asked for: the log-probability of each token of the
      prompt but the first, and `likeliest` of each.
    text: without a stop text, or what may be the beginning of one.
    done: whether it has ended.
    is_stopped: whether a stop token or stop text ended it.
  """

  def __init__(self, tokenizer: tokenizers.Tokenizer, stop: tuple[str, ...], room: int):
    self._tokenizer, self._stop, self._room = tokenizer, stop, room
    self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
    self._decoded = ""  # all of it, with what may be a stop text
    self._longest = max(map(len, stop), default=0)
    self.tokens: list[int] = []
    self.logprobs: list[float] = []
    self.likeliest: list[Likeliest] = []
    self.prompt: tuple[list[float], list[Likeliest]] | None = None
    self.text, self.done, self.is_stopped = "", room == 0, False

  def extend(
    self, tokens: np.ndarray, logprobs: np.ndarray, likeliest: Sequence[Likeliest] = ()
  ) -> str:
    """Adds drawn tokens; returns the new text, or "" while it may be a stop text."""
    end = None
    drawn = zip(tokens.tolist(), logprobs.tolist(), strict=True)
    for i, (token, logprob) in enumerate(drawn):
      if self.done:
        break
      self.tokens.append(token)
      self.logprobs.append(logprob)
      self.likeliest += likeliest[i : i + 1]
      self.is_stopped = token in self._tokenizer.stops
      self.done = self.is_stopped or len(self.tokens) >= self._room
      seen = max(0, len(self._decoded) - self._longest + 1)
      piece = b"" if self.is_stopped else self._tokenizer.piece(token)
      # The last character may still lack bytes.
      self._decoded += self._decoder.decode(piece, final=self.done)
      end = self._ended(seen)
      if end is not None:
        self.done = self.is_stopped = True
    text = self._decoded[:end]
    if not self.done:
      text = text[: len(text) - self._held(text)]
    new = text[len(self.text) :]
    self.text = text if len(text) > len(self.text) else self.text
    return new

  def _ended(self, seen: int) -> int | None:
    """Where the first stop text begins, after `seen` characters; None without one."""
    found = [self._decoded.find(stop, seen) for stop in self._stop]
    return min((at for at in found if at >= 0), default=None)

  def _held(self, text: str) -> int:
    """Number of characters at the end that may begin a stop text."""
    lengths = [
      n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])
    ]
    return max(lengths, default=0)

  def sample(self) -> Sample:
    """The finished continuation."""
    return Sample(
      self.text,
      np.asarray(self.tokens, np.int32),
      np.asarray(self.logprobs, np.float32),
    )


class TextGenerator:
  """Continues prompts; compiled once per bucket of prompt lengths.

  Attributes:
    model: the transformer.
    tokenizer: of the model.
    sampling: how to draw.
    piece: tokens drawn per call of the loop: 1 streams smoothly, more is faster.
  """

  def __init__(
    self,
    model: transformer.Transformer,
    tokenizer: tokenizers.Tokenizer,
    sampling: generate.Sampling,
    piece: int = 8,
  ):
    self.tokenizer, self.sampling = tokenizer, sampling
    self.model = transformer.unscanned(model)
    self.piece = min(piece, sampling.max_tokens)

    def decoder(params):
      variables = {"params": params}
      return lambda tokens, cache, at: self.model.apply(variables, tokens, cache, at=at)

    def start(params, prompts, lengths, keys, num_slots):
      cache = transformer.init_cache(model.config, prompts.shape[0], num_slots)
      return generate.prefill(decoder(params), cache, prompts, lengths, keys)

    def extend(params, state):
      return generate.extend(
        decoder(params), state, self.piece, sampling.draw, tuple(tokenizer.stops)
      )

    self._start = jax.jit(start, static_argnames="num_slots")
    self._extend = jax.jit(extend, donate_argnums=1)
    self._unstack = jax.jit(transformer.unstack)

  def ids(self, prompt: Prompt) -> list[int]:
    """Tokens of a prompt, with the tokenizer's opening; ids are used as given.

    Raises:
      InputError: see `samples`.
    """
    if isinstance(prompt, str):
      ids = [*self.tokenizer.opens(prompt), *self.tokenizer.encode(prompt)]
    else:
      ids = list(prompt)
    context = self.model.config.max_length
    if not ids:
      raise InputError("the prompt is empty; this model needs at least one character")
    if len(ids) >= context:
      raise InputError(
        f"a prompt has {len(ids)} tokens; the model's context holds {context}, one of"
        " them for the answer: shorten the prompt"
      )
    return ids

  def _pieces(
    self, params: Params, prompts: Sequence[Prompt], keys: Array
  ) -> Iterator[tuple[list[Row], list[str]]]:
    """Yields the rows, and the new text of each, until all are done."""
    if "blocks" in params:
      params = self._unstack(params)
    ids = [self.ids(prompt) for prompt in prompts]
    context = self.model.config.max_length
    longest = max(map(len, ids))
    width = min(bucket(longest), context)
    padded = np.zeros((len(ids), width), np.int32)
    for i, row in enumerate(ids):
      padded[i, : len(row)] = row
    lengths = np.array([len(row) for row in ids], np.int32)
    limit = self.sampling.max_tokens
    num_slots = min(width + limit, context) + self.piece
    rooms = [min(limit, context - len(row)) for row in ids]
    rows = [Row(self.tokenizer, self.sampling.stop, room) for room in rooms]
    state = self._start(params, padded, lengths, keys, num_slots=num_slots)
    while not all(row.done for row in rows):
      state, tokens, logprobs, _ = self._extend(params, state)
      tokens, logprobs = tree.fetch(tokens), tree.fetch(logprobs)
      new = [row.extend(*x) for row, *x in zip(rows, tokens, logprobs, strict=True)]
      yield rows, new

  def samples(
    self,
    params: Params,
    prompts: Sequence[Prompt],
    keys: Array,
    show: Callable[[list[str]], None] = lambda texts: None,
  ) -> list[Sample]:
    """One continuation per prompt and key; none depends on the others.

    Args:
      params: of the model, layers stacked or unrolled.
      prompts: texts, or ids that are used as given (a rendered chat).
      keys: [B], see `keys`.
      show: called with the new text of each row, whenever there is any.

    Raises:
      InputError: a prompt that leaves no room in the model's context, or an empty one
        if the tokenizer has no opening token.
    """
    for rows, texts in self._pieces(params, prompts, keys):  # noqa: B007
      show(texts)
    return [row.sample() for row in rows]

  def texts(self, params: Params, prompts: Sequence[Prompt], keys: Array) -> list[str]:
    """The texts of `samples`."""
    return [sample.text for sample in self.samples(params, prompts, keys)]

  def stream(self, params: Params, prompt: Prompt, key: Array) -> Iterator[str]:
    """Yields the text of a continuation, once it cannot be part of a stop text."""
    for _, (text,) in self._pieces(params, [prompt], key[None]):
      if text:
        yield text
