"""Sources of token stores: `data.source=tokens`, one, and `mixture`, several.

They are sources of documents like others, decoded when asked for, with a `feed` of
batches of their own: neither texts nor a copy of the tokens are held.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from gen_jax import ranges
from gen_jax.data import rows, tokenizers
from gen_jax.data.tokens import feed, order, store
from gen_jax.errors import InputError
from gen_jax.system import files


def _open(path: str, name: str, tokenizer: tokenizers.Tokenizer) -> store.Store:
  found = store.open_store(files.path(path, name), tokenizer.eos)
  found.check_tokenizer(tokenizer)
  return found


def _texts(paths: Sequence[str], name: str, split: str, fraction: float) -> store.Texts:
  """The documents of stores, by their own tokenizers."""

  def opened():
    found = []
    for path in paths:
      home = files.path(path, name)
      if not (home / store.TOKENIZER).is_dir():
        raise InputError(f"{name} {path!r} has no tokenizer: its texts cannot be read")
      tokenizer = tokenizers.load(home / store.TOKENIZER)
      found.append((_open(path, name, tokenizer).stream(split, fraction), tokenizer))
    return found

  return store.Texts(opened)


def _identity(paths: Sequence[pathlib.Path]) -> str:
  found = [p / store.MANIFEST if p.is_dir() else p for p in paths]
  return files.stamps([path for path in found if path.exists()])


def _feed(
  streams: Sequence[store.Stream],
  mixture: order.Mixture,
  names: Sequence[str],
  split: str,
  tokenizer: tokenizers.Tokenizer,
  *,
  rows: rows.Rows,
  length: int,
  batch_size: int,
  seed: int,
) -> feed.Feed:
  for stream, name in zip(streams, names, strict=True):
    if len(stream) < length + 1:
      raise InputError(
        f"split {split!r} of {name} has {len(stream)} tokens, fewer than one window of"
        f" data.length={length} + 1; give more text, a shorter length, or hold out more"
      )
    if len(stream) // length > order.LARGEST:
      raise InputError(
        f"{name} has {len(stream) // length:,} rows of data.length={length}; at most"
        f" {order.LARGEST:,} can be shuffled: raise the length"
      )
  sizes = {"length": length, "batch_size": batch_size}
  return feed.Feed(
    streams, mixture, rows, **sizes, vocab_size=tokenizer.vocab_size, seed=seed
  )


@dataclasses.dataclass(frozen=True)
class Tokens:
  """A token store, or a file or folder of nanoGPT or Megatron, see `store.open_store`.

  Attributes:
    validation_fraction: the tail that is held out of a store without such a split.
  """

  path: str
  validation_fraction: ranges.ProperFraction = 0.01

  def __post_init__(self) -> None:
    ranges.check(self)

  def documents(self, split: str) -> Sequence[str]:
    name, held_out = "data.source.path", self.validation_fraction
    return _texts([self.path], name, split, held_out)

  def identity(self) -> str:
    return _identity([files.path(self.path, "data.source.path")])

  def feed(self, split: str, tokenizer: tokenizers.Tokenizer, **how) -> feed.Feed:
    """Batches of a split; `how` is rows, length, batch_size and seed of `feed.Feed`."""
    found = _open(self.path, "data.source.path", tokenizer)
    streams = [found.stream(split, self.validation_fraction)]
    alone = order.Mixture([order.Stage(0, (1.0,))])
    return _feed(streams, alone, [self.path], split, tokenizer, **how)


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Token stores of one tokenizer, mixed by rows.

  Attributes:
    weights: shares of the rows, in any unit.
    changes: (step, weight, weight, ...), the weights from a step on.
    validation_fraction: as of `Tokens`; validation is all stores, whole.
  """

  paths: tuple[str, ...]
  weights: tuple[ranges.NotNegative, ...]
  changes: tuple[tuple[ranges.NotNegative, ...], ...] = ()
  validation_fraction: ranges.ProperFraction = 0.01

  def __post_init__(self):
    ranges.check(self)
    rows = (self.weights, *(change[1:] for change in self.changes))
    for weights in rows:
      if len(weights) != len(self.paths):
        raise InputError(
          f"data.source has {len(self.paths)} paths and {len(weights)} weights"
          f" {weights}; give one for each"
        )
      order.quotas(weights)
    steps = [0.0, *(change[0] for change in self.changes)]
    if steps != sorted(set(steps)) or any(step % 1 for step in steps):
      raise InputError(
        f"data.source.changes begin at the steps {steps[1:]}; they must be whole"
        " numbers above 0 that rise"
      )

  def documents(self, split: str) -> Sequence[str]:
    name, held_out = "data.source.paths", self.validation_fraction
    return _texts(self.paths, name, split, held_out)

  def identity(self) -> str:
    return _identity([files.path(path, "data.source.paths") for path in self.paths])

  def feed(self, split: str, tokenizer: tokenizers.Tokenizer, **how) -> feed.Feed:
    """Batches of a split; `how` is rows, length, batch_size and seed of `feed.Feed`."""
    found = [_open(path, "data.source.paths", tokenizer) for path in self.paths]
    streams = [opened.stream(split, self.validation_fraction) for opened in found]
    stages = [order.Stage(0, self.weights)]
    for step, *weights in self.changes:
      stages.append(order.Stage(int(step) * how["batch_size"], tuple(weights)))
    return _feed(streams, order.Mixture(stages), self.paths, split, tokenizer, **how)
