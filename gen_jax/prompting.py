"""Prompts in, text or pictures out: strings around the compiled loops."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import rng
from gen_jax.data import pipeline, tokenizers
from gen_jax.decoding import generate
from gen_jax.models import transformer
from gen_jax.tasks import diffusion
from gen_jax.types import Array, InputError, Params, PyTree


def keys(seed: int, num: int, offset: int = 0) -> Array:
  """Keys [num] of samples offset, offset + 1, ... of a seed."""
  return rng.per_example(rng.named(jax.random.key(seed), "sample"), num, offset)


def _bucket(length: int) -> int:
  """The next power of two, at least 16: few prompt lengths, few compilations."""
  return max(16, 1 << (length - 1).bit_length())


class Writer:
  """Continues prompts; compiled once per bucket of prompt lengths.

  Attributes:
    model: the transformer.
    tokenizer: of the model.
    sampling: how to draw.
    piece: tokens drawn between two looks at them: 1 streams smoothly, more is faster.
  """

  def __init__(
    self,
    model: transformer.Transformer,
    tokenizer: tokenizers.Tokenizer,
    sampling: generate.Sampling,
    piece: int = 8,
  ):
    self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
    self.piece = min(piece, sampling.max_tokens)
    token_filter = sampling.token_filter()

    def decoder(params):
      return lambda tokens, cache: model.apply({"params": params}, tokens, cache)

    def start(params, prompts, lengths, keys, num_slots):
      cache = transformer.init_cache(model.config, prompts.shape[0], num_slots)
      return generate.prefill(decoder(params), cache, prompts, lengths, keys)

    def extend(params, state):
      stop = tokenizer.stops[0] if tokenizer.stops else -1
      return generate.extend(decoder(params), state, self.piece, token_filter, stop)

    self._start = jax.jit(start, static_argnames="num_slots")
    self._extend = jax.jit(extend, donate_argnums=1)

  def pieces(
    self, params: Params, prompts: Sequence[str], keys: Array
  ) -> Iterator[np.ndarray]:
    """Yields tokens int32 [B, <= piece] until all rows are done or long enough.

    Raises:
      InputError: a prompt that leaves no room in the model's context, or an empty one
        where the tokenizer has nothing to open a text with.
    """
    bos, context = self.tokenizer.bos, self.model.config.max_length
    opening = [] if bos is None else [bos]
    rows = [[*opening, *self.tokenizer.encode(prompt)] for prompt in prompts]
    longest = max(map(len, rows))
    if not all(rows):
      raise InputError("the prompt is empty; this model needs at least one character")
    if longest >= context:
      raise InputError(
        f"a prompt has {longest} tokens; the model's context holds {context}, one of"
        " them for the answer: shorten the prompt"
      )
    width = min(_bucket(longest), context)
    padded = np.zeros((len(rows), width), np.int32)
    for i, row in enumerate(rows):
      padded[i, : len(row)] = row
    lengths = jnp.asarray([len(row) for row in rows], jnp.int32)
    budget = min(self.sampling.max_tokens, context - longest)
    most = width + self.sampling.max_tokens
    num_slots = min(_bucket(most), context) + self.piece
    state = self._start(params, padded, lengths, keys, num_slots=num_slots)
    drawn = 0
    while drawn < budget:
      state, tokens = self._extend(params, state)
      yield np.asarray(tokens)[:, : budget - drawn]
      drawn += self.piece
      if np.asarray(state.done).all():
        return

  def texts(self, params: Params, prompts: Sequence[str], keys: Array) -> list[str]:
    """The continuations, without their prompts."""
    pieces = list(self.pieces(params, prompts, keys))
    rows = np.concatenate(pieces, axis=1)
    return ["".join(self.tokenizer.stream(self._until_stop(row))) for row in rows]

  def stream(self, params: Params, prompt: str, key: Array) -> Iterator[str]:
    """One continuation, piece by piece."""

    def ids():
      for tokens in self.pieces(params, [prompt], key[None]):
        row = tokens[0]
        kept = self._until_stop(row)
        yield from kept
        if len(kept) < len(row):
          return

    yield from self.tokenizer.stream(ids())

  def _until_stop(self, row: np.ndarray) -> np.ndarray:
    ends = np.flatnonzero(np.isin(row, self.tokenizer.stops))
    return row[: ends[0]] if ends.size else row


@dataclasses.dataclass(frozen=True, eq=False)
class Painter:
  """Draws pictures for captions, in batches of one fixed size; compiled once.

  Attributes:
    task: the diffusion task.
    tokenizer: of its captions.
    sampling: how to draw.
    shape: of one latent, [H, W, C].
    caption_length: tokens of a caption, S.
    batch_size: pictures drawn at once; does not change any of them.
  """

  task: diffusion.Diffusion
  tokenizer: tokenizers.Tokenizer
  sampling: diffusion.Sampling
  shape: tuple[int, ...]
  caption_length: int
  batch_size: int = 50

  def __post_init__(self):
    def draw(params, frozen, caption, keys):
      return diffusion.draw(
        self.task, self.sampling, params, frozen, caption, keys, self.shape
      )

    object.__setattr__(self, "_draw", jax.jit(draw))

  def images(
    self, params: Params, frozen: PyTree, captions: Sequence[str], keys: Array
  ) -> np.ndarray:
    """uint8 [N, H, W, C], picture i for captions[i] and keys[i].

    Raises:
      InputError: a caption longer than the text encoder reads.
    """
    for caption in captions:
      length = len(self.tokenizer.encode(caption)) + 1
      if length > self.caption_length:
        raise InputError(
          f"prompt {caption!r} has {length} tokens; the text encoder reads"
          f" {self.caption_length}: shorten it"
        )
    rows = [
      pipeline.pad_caption(c, self.tokenizer, self.caption_length) for c in captions
    ]
    images = []
    size = min(self.batch_size, len(rows))
    for start in range(0, len(rows), size):
      index = np.minimum(np.arange(start, start + size), len(rows) - 1)
      caption = diffusion.Caption(
        *(jnp.asarray(np.stack([rows[i][j] for i in index])) for j in (0, 1))
      )
      batch = np.asarray(self._draw(params, frozen, caption, keys[index]))
      images.append(batch[: len(rows) - start])
    pixels = np.concatenate(images) * 127.5 + 127.5
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)
