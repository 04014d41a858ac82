"""Tables that map foreign tensors to parameters, used for import and export.

A foreign tensor is one or several of our arrays as matrices, concatenated, and perhaps
transposed. An array [D, N, Dh] becomes the matrix [D, N Dh]; `inputs` is the number of
its leading axes that form the rows. Parts are views: nothing is copied.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TensorMap:
  """One foreign tensor and the parameters that it holds.

  Attributes:
    foreign: its name; {i} is the layer.
    paths: of our parameters, in order along its last axis.
    inputs: leading axes of ours that form the matrix's rows; 0 for a vector.
    transposed: the foreign matrix is [out, in].
  """

  foreign: str
  paths: tuple[str, ...]
  inputs: int = 0
  transposed: bool = False

  def at(self, layer: int) -> "TensorMap":
    """The entry for one layer."""
    return dataclasses.replace(
      self,
      foreign=self.foreign.format(i=layer),
      paths=tuple(path.format(i=layer) for path in self.paths),
    )

  def shape(self, shapes: Sequence[Shape]) -> Shape:
    """Shape of the foreign tensor, from those of our arrays."""
    width = sum(math.prod(shape[self.inputs :]) for shape in shapes)
    if not self.inputs:
      return (width,)
    rows = math.prod(shapes[0][: self.inputs])
    return (width, rows) if self.transposed else (rows, width)

  def part(self, tensor: np.ndarray, path: str, shape: Shape) -> np.ndarray:
    """Our array as a view of the foreign tensor; parts are of equal size."""
    matrix = tensor.T if self.transposed else tensor
    width = matrix.shape[-1] // len(self.paths)
    start = self.paths.index(path) * width
    return matrix[..., start : start + width].reshape(shape)

  def whole(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The foreign tensor, made of our arrays."""
    matrices = [
      a.reshape((math.prod(a.shape[: self.inputs]), -1) if self.inputs else -1)
      for a in arrays
    ]
    matrix = np.concatenate(matrices, -1) if len(matrices) > 1 else matrices[0]
    return matrix.T if self.transposed else matrix


def norm(foreign: str, path: str) -> tuple[TensorMap, TensorMap]:
  """Scale and bias of a normalisation."""
  return (
    TensorMap(f"{foreign}.weight", (f"{path}/scale",)),
    TensorMap(f"{foreign}.bias", (f"{path}/bias",)),
  )


def linear(
  foreign: str, *paths: str, inputs: int = 1, transposed: bool = False
) -> tuple[TensorMap, TensorMap]:
  """Kernel and bias of a linear map, or of several in one tensor."""
  return (
    TensorMap(
      f"{foreign}.weight", tuple(f"{p}/kernel" for p in paths), inputs, transposed
    ),
    TensorMap(f"{foreign}.bias", tuple(f"{p}/bias" for p in paths)),
  )


def unrolled(table: Sequence[TensorMap], num_layers: int) -> Iterator[TensorMap]:
  """A table's entries, those of layers once for each."""
  for entry in table:
    for i in range(num_layers if "{i}" in entry.foreign else 1):
      yield entry.at(i)
