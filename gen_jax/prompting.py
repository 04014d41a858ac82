"""Prompts in, text or pictures out: strings around the compiled loops."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import rng, tree
from gen_jax.data import pipeline, tokenizers
from gen_jax.decoding import generate
from gen_jax.models import transformer
from gen_jax.tasks import diffusion
from gen_jax.types import Array, InputError, Params, PyTree


def keys(seed: int, num: int, offset: int = 0) -> Array:
  """Keys [num] of samples offset, offset + 1, ... of a seed."""
  return rng.per_example(rng.named(jax.random.key(seed), "sample"), num, offset)


def to_uint8(images: Array | np.ndarray) -> np.ndarray:
  """Pixels of about [-1, 1] as uint8, what lies beyond cut off."""
  return np.clip(np.round(tree.fetch(images) * 127.5 + 127.5), 0, 255).astype(np.uint8)


def _bucket(length: int) -> int:
  """The next power of two, at least 16: few prompt lengths, few compilations."""
  return max(16, 1 << (length - 1).bit_length())


Prompt = str | Sequence[int]


@dataclasses.dataclass(frozen=True)
class Sample:
  """One continuation, without its prompt.

  Attributes:
    text: up to the first stop token or stop text.
    tokens: int32 [T], those drawn, the stop token included.
    logprobs: float32 [T], of each as the model has it, before any filter.
  """

  text: str
  tokens: np.ndarray
  logprobs: np.ndarray


class _Row:
  """One continuation in the making: its tokens, and the text that is safe to show."""

  def __init__(self, tokenizer: tokenizers.Tokenizer, stop: tuple[str, ...], room: int):
    self._tokenizer, self._stop, self._room = tokenizer, stop, room
    self.tokens: list[int] = []
    self.logprobs: list[float] = []
    self.text, self.done = "", False

  def extend(self, tokens: np.ndarray, logprobs: np.ndarray) -> str:
    """Takes in what was drawn; returns the new text, or "" while it may be a stop."""
    for token, logprob in zip(tokens.tolist(), logprobs.tolist(), strict=True):
      if self.done:
        break
      self.tokens.append(token)
      self.logprobs.append(logprob)
      is_stop = token in self._tokenizer.stops
      self.done = is_stop or len(self.tokens) >= self._room
      if self._stop and self._ended(self._decoded()) is not None:
        self.done = True
    text = self._decoded()
    end = self._ended(text)
    if end is not None:
      text = text[:end]
    elif not self.done:
      text = text[: len(text) - self._held(text)]
    new = text[len(self.text) :]
    self.text = text if len(text) > len(self.text) else self.text
    return new

  def _decoded(self) -> str:
    ids = self.tokens
    if ids and ids[-1] in self._tokenizer.stops:
      ids = ids[:-1]
    text = "".join(self._tokenizer.stream(ids))
    # The bytes of a character may still be on their way.
    return text if self.done else text.rstrip("\ufffd")

  def _ended(self, text: str) -> int | None:
    """Where the first stop text begins, if there is one."""
    found = [text.find(stop) for stop in self._stop if stop in text]
    return min(found) if found else None

  def _held(self, text: str) -> int:
    """Characters at the end that may be the beginning of a stop text."""
    lengths = [
      n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])
    ]
    return max(lengths, default=0)

  def sample(self) -> Sample:
    """What has become of it."""
    return Sample(
      self.text,
      np.asarray(self.tokens, np.int32),
      np.asarray(self.logprobs, np.float32),
    )


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
    self.tokenizer, self.sampling = tokenizer, sampling
    self.model = transformer.in_a_row(model)
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

  def _ids(self, prompt: Prompt) -> list[int]:
    """Tokens of a prompt as its tokenizer opens it; ids are taken as they are."""
    ids = list(prompt)
    if isinstance(prompt, str):
      ids = [*self.tokenizer.opens(prompt), *self.tokenizer.encode(prompt)]
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
  ) -> Iterator[tuple[list[_Row], list[str]]]:
    """Yields the rows, and what each has to show anew, until all are done."""
    if "blocks" in params:
      params = self._unstack(params)
    ids = [self._ids(prompt) for prompt in prompts]
    context = self.model.config.max_length
    longest = max(map(len, ids))
    width = min(_bucket(longest), context)
    padded = np.zeros((len(ids), width), np.int32)
    for i, row in enumerate(ids):
      padded[i, : len(row)] = row
    lengths = jnp.asarray([len(row) for row in ids], jnp.int32)
    limit = self.sampling.max_tokens
    num_slots = min(width + limit, context) + self.piece
    rooms = [min(limit, context - len(row)) for row in ids]
    rows = [_Row(self.tokenizer, self.sampling.stop, room) for room in rooms]
    state = self._start(params, padded, lengths, keys, num_slots=num_slots)
    while not all(row.done for row in rows):
      state, tokens, logprobs = self._extend(params, state)
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
      params: of the model, layers stacked or in a row.
      prompts: texts, or ids that are taken as they are (a rendered chat).
      keys: [B], see `keys`.
      show: called with what each row has to show anew, as soon as it has.

    Raises:
      InputError: a prompt that leaves no room in the model's context, or an empty one
        where the tokenizer has nothing to open a text with.
    """
    for rows, texts in self._pieces(params, prompts, keys):  # noqa: B007
      show(texts)
    return [row.sample() for row in rows]

  def texts(self, params: Params, prompts: Sequence[Prompt], keys: Array) -> list[str]:
    """The texts of `samples`."""
    return [sample.text for sample in self.samples(params, prompts, keys)]

  def stream(self, params: Params, prompt: Prompt, key: Array) -> Iterator[str]:
    """The text of one continuation, as soon as it cannot be part of a stop text."""
    for _, (text,) in self._pieces(params, [prompt], key[None]):
      if text:
        yield text


def latent_shape(
  task: diffusion.Diffusion, picture: tuple[int, ...]
) -> tuple[int, ...]:
  """[h, w, Z] of the latents of a picture [H, W, C].

  Raises:
    InputError: sides that the codec or the UNet cannot divide.
  """
  (height, width), latent = picture[:2], task.codec.shape(picture)
  factor = height // max(latent[0], 1)
  if (latent[0] * factor, latent[1] * factor) != (height, width):
    raise InputError(
      f"the picture's sides {width}x{height} must be divisible by {factor}; crop it"
    )
  task.unet.config.check_side(*latent[:2])
  return latent


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
    place: spreads arrays [batch_size, ...] over the devices that share the work.
  """

  task: diffusion.Diffusion
  tokenizer: tokenizers.Tokenizer
  sampling: diffusion.Sampling
  shape: tuple[int, ...]
  caption_length: int
  batch_size: int = 50
  place: Callable[[PyTree], PyTree] = lambda tree: tree

  def __post_init__(self):
    draw = functools.partial(diffusion.draw, self.task, self.sampling)
    edit = functools.partial(diffusion.edit, self.task, self.sampling)
    object.__setattr__(self, "_draw", jax.jit(draw, static_argnames="shape"))
    object.__setattr__(self, "_edit", jax.jit(edit))

  def images(
    self,
    params: Params,
    frozen: PyTree,
    captions: Sequence[str],
    keys: Array,
    negative: str = "",
  ) -> np.ndarray:
    """uint8 [N, H, W, C], picture i for captions[i] and keys[i].

    Args:
      negative: what guidance leads away from.

    Raises:
      InputError: a caption longer than the text encoder reads, or a model that only
        edits.
    """
    return np.concatenate(list(self.batches(params, frozen, captions, keys, negative)))

  def batches(
    self,
    params: Params,
    frozen: PyTree,
    captions: Sequence[str],
    keys: Array,
    negative: str = "",
    start: int = 0,
  ) -> Iterator[np.ndarray]:
    """The images of `images` from number `start` on, as they are drawn.

    Args:
      start: a multiple of `batch_size`: the batches are those of a call for all.
    """
    if self.task.unet.config.extra_channels:
      raise InputError("this model draws from a picture: gen-jax edit --image")

    def draw(index, *captions):
      caption, against = captions
      at = self.place(keys[index])
      return self._draw(params, frozen, caption, at, shape=self.shape, negative=against)

    return self._batches(draw, captions, [negative] * len(captions), start=start)

  def edits(
    self,
    params: Params,
    frozen: PyTree,
    captions: Sequence[str],
    keys: Array,
    picture: np.ndarray,
    change: np.ndarray,
    strength: float,
    negative: str = "",
  ) -> np.ndarray:
    """uint8 [N, H, W, C]: pictures drawn anew, one for each caption and key.

    Args:
      picture: uint8 [N, H, W, C], or [H, W, C] for all.
      change: bool [N, H, W] or [H, W]; every pixel outside comes back bit for bit.
      strength: in [0, 1]: 0 is the picture itself, 1 forgets what was there.

    Raises:
      InputError: see `images`; or a strength or picture that does not fit.
    """
    if not 0 <= strength <= 1:
      raise InputError(f"strength={strength} must be in [0, 1]")
    height, width, channels = picture.shape[-3:]
    if change.shape[-2:] != (height, width):
      raise InputError(
        f"the mask is {change.shape[-1]}x{change.shape[-2]}, the picture"
        f" {width}x{height}; they must be of one size"
      )
    latent_shape(self.task, (height, width, channels))
    picture = np.broadcast_to(picture, (len(captions), height, width, channels))
    change = np.broadcast_to(change, picture.shape[:-1])

    def draw(index, caption, against):
      return self._edit(
        params,
        frozen,
        caption,
        self.place(keys[index]),
        picture[index].astype(np.float32) / 127.5 - 1.0,
        change[index],
        np.float32(strength),
        against,
      )

    drawn = self.in_batches(draw, captions, [negative] * len(captions))
    changed = change[..., None] & (strength > 0)
    return np.where(changed, drawn, picture)

  def caption(self, texts: Sequence[str]) -> diffusion.Caption:
    """Tokens and mask of texts, [N, S].

    Raises:
      InputError: a text longer than the text encoder reads.
    """
    for text in texts:
      length = len(pipeline.caption_ids(text, self.tokenizer))
      if length > self.caption_length:
        raise InputError(
          f"prompt {text!r} has {length} tokens; the text encoder reads"
          f" {self.caption_length}: shorten it"
        )
    rows = [pipeline.pad_caption(t, self.tokenizer, self.caption_length) for t in texts]
    return diffusion.Caption(*(jnp.asarray(np.stack(x)) for x in zip(*rows)))  # noqa: B905

  def in_batches(self, draw, *texts: Sequence[str]) -> np.ndarray:
    """uint8 of draw(indices, captions, ...) for N texts of each kind, in batches."""
    return np.concatenate(list(self._batches(draw, *texts)))

  def _batches(self, draw, *texts: Sequence[str], start: int = 0):
    """Yields the batches of `in_batches` from image `start` on."""
    for kind in texts:
      self.caption(kind)  # refuses before anything is drawn
    num = len(texts[0])
    size = min(self.batch_size, num)
    for first in range(start, num, size):
      index = np.minimum(np.arange(first, first + size), num - 1)
      given = (self.place(self.caption([kind[i] for i in index])) for kind in texts)
      yield to_uint8(tree.fetch(draw(index, *given))[: num - first])
