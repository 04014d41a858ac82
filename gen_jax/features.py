"""Features that pictures are compared in, each with a name that goes into its figures.

A distance says nothing without them: FID is the Fréchet distance in those of Inception
alone, and figures in different features are never put side by side.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from gen_jax.data import pipeline, sources
from gen_jax.data.digits import judge
from gen_jax.types import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
  """A network that sees, or something simpler.

  Attributes:
    name: with whatever sets it apart, for the names of figures.
    sha256: of its weights; empty where it has none.
    rows: uint8 [N, H, W, C] -> float [N, F]; a row depends on its picture alone.
    own_names: {name of a figure: what it is called in these features}.
  """

  name: str
  sha256: str
  rows: Callable[[np.ndarray], np.ndarray]
  own_names: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def of(self, batches: Iterable[np.ndarray]) -> np.ndarray:
    """float32 [N, F] of pictures uint8 [n, H, W, C], batch by batch."""
    found = [self.rows(batch).astype(np.float32) for batch in batches]
    if not found:
      raise InputError("there are no pictures to compare; look at the split")
    return np.concatenate(found)


def pixels(side: int = 16) -> Features:
  """The pictures themselves, averaged down to `side` pixels: blind to anything fine.

  Raises:
    InputError: a side that cannot be.
  """
  if side < 1:
    raise InputError(f"features pixels: side={side} must be at least 1")

  def rows(images):
    size = min(side, images.shape[1])
    small = [pipeline.to_square(x, size, x.shape[-1]) for x in images]
    return np.stack(small).reshape(len(images), -1) / 255.0

  return Features(f"pixels_{side}", "", rows)


def digits() -> Features:
  """The last hidden layer of a network that reads the embedded digits, trained here."""
  hidden, weights = judge.hidden(sources.Digits())
  digest = hashlib.sha256(b"".join(w.tobytes() for w in weights)).hexdigest()
  return Features("digits_mlp", digest, hidden)


ALL = (pixels, digits)
