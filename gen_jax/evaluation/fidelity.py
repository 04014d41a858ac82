"""How near drawn images come to real ones: distances of distributions, and of pairs.

Distributions are compared in features, rows of [N, F]; which features is the caller's
to choose and to name. A Fréchet distance is an FID only in those of Inception.

    frechet     |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), of means and covariances
    kernel      squared maximum mean discrepancy under (x.y / F + 1)^3, unbiased
    precision   share of drawn images within the manifold of real ones
    recall      share of real images within the manifold of drawn ones

Images are compared in pairs by PSNR and SSIM. All in float64, on the host.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from gen_jax.types import InputError

_ROWS = 1024  # of a table of distances at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
  """Count, sum and sum of squares of feature rows: those of parts add up exactly.

  Attributes:
    count: rows seen.
    total: float64 [F], their sum.
    outer: float64 [F, F], the sum of x x^T.

  >>> x = np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
  >>> moments = Moments.of(x[:1]) + Moments.of(x[1:])
  >>> moments.mean.tolist(), moments.covariance.tolist()
  ([2.0, 1.0], [[4.0, 0.0], [0.0, 0.0]])
  """

  count: float
  total: np.ndarray
  outer: np.ndarray

  @classmethod
  def of(cls, features: np.ndarray) -> "Moments":
    """Of rows [N, F]."""
    x = features.astype(np.float64)
    return cls(float(len(x)), x.sum(0), x.T @ x)

  def __add__(self, other: "Moments") -> "Moments":
    return Moments(
      self.count + other.count, self.total + other.total, self.outer + other.outer
    )

  @property
  def mean(self) -> np.ndarray:
    """[F]."""
    return self.total / self.count

  @property
  def covariance(self) -> np.ndarray:
    """[F, F], divided by count - 1."""
    centred = self.outer - np.outer(self.total, self.total) / self.count
    return centred / (self.count - 1.0)


def frechet(a: Moments, b: Moments) -> float:
  """Squared Fréchet distance of the Gaussians with these moments, at least 0.

  The trace of (C C')^(1/2) is that of (S C' S)^(1/2) with S the root of C: a symmetric
  matrix, so that covariances may be singular and nothing turns complex.

  Raises:
    InputError: fewer than two rows.

  Source: Heusel et al. 2017 (arXiv:1706.08500) section 2; Dowson & Landau 1982.
  """
  if min(a.count, b.count) < 2:
    raise InputError("a Fréchet distance needs two images on either side at least")
  values, vectors = np.linalg.eigh(a.covariance)
  root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
  cross = np.linalg.eigvalsh(root @ b.covariance @ root)
  trace = np.trace(a.covariance) + np.trace(b.covariance)
  apart = np.square(a.mean - b.mean).sum()
  return float(max(apart + trace - 2.0 * np.sqrt(np.maximum(cross, 0.0)).sum(), 0.0))


def kernel_distance(
  x: np.ndarray, y: np.ndarray, num_blocks: int = 10
) -> tuple[float, float]:
  """Unbiased squared MMD of x and y [N, F], and its standard error.

  The mean over disjoint blocks of rows, whose estimates are independent: blocks of 1000
  at N = 10,000, as KID is published. Zero in expectation for equal distributions, so it
  may be negative; unlike the Fréchet distance it has no bias at small N.

  Raises:
    InputError: fewer than two rows for each block.

  Source: Binkowski et al. 2018 (arXiv:1801.01401) section 3.1; the blocks are those of
  Zaremba et al. 2013 (1307.1954), where the paper draws overlapping subsets.
  """
  size = min(len(x), len(y)) // num_blocks
  if size < 2:
    raise InputError(
      f"a kernel distance in {num_blocks} blocks needs {2 * num_blocks} images on"
      f" either side at least, got {len(x)} and {len(y)}"
    )
  estimates = []
  for start in range(0, size * num_blocks, size):
    a, b = (z[start : start + size].astype(np.float64) for z in (x, y))
    pairs = ((a, a), (b, b), (a, b))
    *own, cross = ((p @ q.T / p.shape[1] + 1.0) ** 3 for p, q in pairs)
    within = sum(kernel.sum() - np.trace(kernel) for kernel in own)
    estimates.append(within / (size * (size - 1)) - 2.0 * cross.mean())
  return float(np.mean(estimates)), float(np.std(estimates, ddof=1) / num_blocks**0.5)


def _distances(x: np.ndarray, y: np.ndarray) -> Iterator[np.ndarray]:
  """Squared distances of x [N, F] to y [M, F], in pieces [n, M] of rows."""
  y = y.astype(np.float64)
  there = np.square(y).sum(1)
  for start in range(0, len(x), _ROWS):
    rows = x[start : start + _ROWS].astype(np.float64)
    scale = np.square(rows).sum(1)[:, None] + there
    squares = scale - 2.0 * rows @ y.T
    yield np.where(squares < 1e-12 * scale, 0.0, squares)  # rounding, not distance


def _radii(x: np.ndarray, k: int) -> np.ndarray:
  """Squared distance of each row to its k-th nearest other row, [N]."""
  radii = []
  for start, squares in zip(range(0, len(x), _ROWS), _distances(x, x), strict=True):
    rows = np.arange(len(squares))
    squares[rows, start + rows] = np.inf
    radii.append(np.partition(squares, k - 1, 1)[:, k - 1])
  return np.concatenate(radii)


def precision_recall(
  real: np.ndarray, drawn: np.ndarray, k: int = 3
) -> tuple[float, float]:
  """Shares in [0, 1] of drawn within the real manifold, and of real within the drawn.

  A manifold is the union of balls around rows [N, F] that reach to their k-th nearest
  neighbours. Both need as many rows to be fair to each other.

  Raises:
    InputError: no more than k rows.

  Source: Kynkaanniemi et al. 2019 (arXiv:1904.06991) section 2.
  """
  if min(len(real), len(drawn)) <= k:
    raise InputError(f"precision and recall need more than {k} images on either side")

  def within(points, manifold):
    radii = _radii(manifold, k)
    inside = [(d <= radii).any(1) for d in _distances(points, manifold)]
    return float(np.concatenate(inside).mean())

  return within(drawn, real), within(real, drawn)


def nearest(x: np.ndarray, y: np.ndarray, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
  """Distances of x [N, F] to its k nearest rows of y, rising, and which: [N, k]."""
  found = [np.argsort(squares, 1)[:, :k] for squares in _distances(x, y)]
  index = np.concatenate(found)
  return np.linalg.norm(x[:, None].astype(np.float64) - y[index], axis=-1), index


def memorised(distances: np.ndarray) -> float:
  """Share in [0, 1] of images that copy one of the training set.

  One that is three times nearer to its nearest neighbour than to the next.

  Args:
    distances: to the two nearest training images, [N, 2], of `nearest`.

  Source: Gu et al. 2023 (arXiv:2310.02664) section 2.
  """
  return float(np.mean(3.0 * distances[:, 0] < distances[:, 1]))


def psnr(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """10 log10(255^2 / mean square error) in dB of uint8 [N, H, W, C] pairs, [N]."""
  error = np.square(x.astype(np.float64) - y).reshape(len(x), -1).mean(1)
  with np.errstate(divide="ignore"):  # equal images: infinite
    return 10.0 * np.log10(255.0**2 / error)


def ssim(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Structural similarity in [-1, 1] of uint8 [N, H, W, C] pairs, [N].

  Mean over channels and over the places where an 11x11 Gaussian window (sigma 1.5) fits
  into the image.

  Raises:
    InputError: a side below 11.

  Source: Wang et al. 2004 (doi:10.1109/TIP.2003.819861) eq. 13, K1 0.01 and K2 0.03.
  """
  if min(x.shape[1:3]) < 11:
    raise InputError(
      f"SSIM needs sides of 11 pixels at least, got {x.shape[2]}x{x.shape[1]}"
    )
  window = np.exp(-0.5 * np.square(np.arange(-5, 6) / 1.5))
  window /= window.sum()

  def blur(z):
    for axis in (1, 2):
      z = np.lib.stride_tricks.sliding_window_view(z, 11, axis) @ window
    return z

  x, y = x.astype(np.float64), y.astype(np.float64)
  mx, my = blur(x), blur(y)
  vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
  c1, c2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2
  luminance = (2.0 * mx * my + c1) / (mx**2 + my**2 + c1)
  structure = (2.0 * cov + c2) / (vx + vy + c2)
  return (luminance * structure).reshape(len(x), -1).mean(1)


def compare(real: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
  """All distances of two sets of feature rows [N, F] that their sizes allow.

  Returns:
    frechet; kernel and kernel_error; precision and recall, of as many rows of either.
  """
  num = min(len(real), len(drawn))
  found = {"frechet": frechet(Moments.of(real), Moments.of(drawn))}
  if num >= 20:
    found["kernel"], found["kernel_error"] = kernel_distance(real, drawn)
    shares = precision_recall(real[:num], drawn[:num])
    found["precision"], found["recall"] = shares
  return found
