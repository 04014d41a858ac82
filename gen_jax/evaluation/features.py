"""Features that images are compared in, each with a name that goes into its figures.

A distance says nothing without them: FID is the Fréchet distance in those of Inception
alone, and figures in different features are never put side by side.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np

from gen_jax import ranges, safetensors
from gen_jax.data import image_files
from gen_jax.data.digits import scorer, source
from gen_jax.models import efficientnet
from gen_jax.models import inception as inception_
from gen_jax.system import copies, files
from gen_jax.types import InputError

_BATCH = 16  # images that a network sees at once; changes no feature


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
  """A network that sees, or something simpler.

  Attributes:
    name: with whatever sets it apart, for the names of figures.
    sha256: of its weights; empty where it has none.
    rows: uint8 [N, H, W, C] -> float [N, F]; a row depends on its image alone.
    own_names: {name of a figure: what it is called in these features}.
  """

  name: str
  sha256: str
  rows: Callable[[np.ndarray], np.ndarray]
  own_names: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def of(self, batches: Iterable[np.ndarray]) -> np.ndarray:
    """float32 [N, F] of images uint8 [n, H, W, C], batch by batch."""
    found = [self.rows(batch).astype(np.float32) for batch in batches]
    if not found:
      raise InputError("there are no images to compare; look at the split")
    return np.concatenate(found)


@ranges.checked
def pixels(side: ranges.Size = 16) -> Features:
  """The images themselves, averaged down to `side` pixels: blind to anything fine.

  Raises:
    InputError: a side that cannot be.
  """

  def rows(images):
    size = min(side, images.shape[1])
    small = [image_files.to_square(x, size, x.shape[-1]) for x in images]
    return np.stack(small).reshape(len(images), -1) / 255.0

  return Features(f"pixels_{side}", "", rows)


@functools.cache
def digits() -> Features:
  """The last hidden layer of a network that reads the embedded digits, trained here."""
  hidden, weights = scorer.hidden(source.Digits())
  digest = hashlib.sha256(b"".join(w.tobytes() for w in weights)).hexdigest()
  return Features("digits_mlp", digest, hidden)


def efficientnet_lite0(weights: str) -> Features:
  """EfficientNet-lite0, trained on ImageNet. See `_network`."""
  return _network("efficientnet_lite0", efficientnet.features, weights)


def inception(weights: str) -> Features:
  """The Inception that FID is defined by. See `_network`."""
  names = {"frechet": "fid", "kernel": "kid", "kernel_error": "kid_error"}
  network = _network("inception", inception_.features, weights)
  return dataclasses.replace(network, own_names=names)


def _network(name: str, rows, weights: str) -> Features:
  """A foreign network over a safetensors file of its weights, by their own names.

  Raises:
    InputError: no such file, or one of another network.
  """
  file = copies.here(weights, f"features {name}: weights")
  if not file.is_file():
    raise InputError(
      f"features {name}: there is no file {weights}; tools/convert_features.py makes"
      " one of published weights"
    )
  found = safetensors.read_header(file)
  tensors = {k: v.view() for k, v in found.items() if v.dtype in safetensors.DTYPES}
  tensors = {k: np.asarray(v, np.float32) for k, v in tensors.items()}
  try:
    jax.eval_shape(rows, tensors, np.zeros((1, 32, 32, 3), np.uint8))
  except (KeyError, TypeError, ValueError) as error:
    raise InputError(
      f"features {name}: {weights} holds another network ({str(error).splitlines()[0]})"
    ) from None
  run = jax.jit(rows)

  def in_batches(images):
    images = np.broadcast_to(images, (*images.shape[:-1], 3))  # grey is a colour, too
    out = []
    for first in range(0, len(images), _BATCH):
      some = images[first : first + _BATCH]
      filled = np.resize(some, (_BATCH, *some.shape[1:]))
      out.append(np.asarray(run(tensors, filled))[: len(some)])
    return np.concatenate(out)

  digest = files.sha256(file)
  return Features(name, digest, in_batches)


ALL = (pixels, digits, efficientnet_lite0, inception)
