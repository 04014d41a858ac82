"""Distances of distributions and of images: closed forms, sums, limits, refusals."""

import numpy as np
import pytest

from gen_jax.evaluation import fidelity
from gen_jax.types import InputError


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape)


def gaussian(mean, covariance, count=1000.0):
  """The moments that rows with exactly this mean and covariance have."""
  mean, covariance = np.asarray(mean, float), np.asarray(covariance, float)
  outer = (count - 1.0) * covariance + count * np.outer(mean, mean)
  return fidelity.Moments(count, count * mean, outer)


def test_moments_of_parts_are_those_of_the_whole():
  x = normal(0, 50, 3)
  parts = fidelity.Moments.of(x[:7]) + fidelity.Moments.of(x[7:])
  np.testing.assert_allclose(parts.mean, x.mean(0), rtol=1e-12)
  np.testing.assert_allclose(parts.covariance, np.cov(x.T), rtol=1e-12)


def test_frechet_of_commuting_covariances():
  """|m - m'|^2 + sum (s - s')^2: here 9 + 16 + (1 - 2)^2 + (3 - 0)^2."""
  a = gaussian([0, 1], np.diag([1.0, 9.0]))
  b = gaussian([3, 5], np.diag([4.0, 0.0]))
  assert fidelity.frechet(a, b) == pytest.approx(35.0)
  assert fidelity.frechet(b, a) == pytest.approx(35.0)


def test_frechet_of_covariances_that_do_not_commute():
  """For 2x2 matrices tr (A B)^(1/2) = sqrt(tr AB + 2 sqrt(det A det B))."""
  a, b = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[5.0, -2.0], [-2.0, 1.0]])
  root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
  found = fidelity.frechet(gaussian([0, 0], a), gaussian([0, 0], b))
  assert found == pytest.approx(np.trace(a) + np.trace(b) - 2 * root)


def test_frechet_of_a_set_with_itself_and_moved():
  """More features than rows: the covariance is singular."""
  x = normal(0, 20, 40)
  here = fidelity.Moments.of(x)
  assert fidelity.frechet(here, here) == pytest.approx(0, abs=1e-5)
  moved = fidelity.frechet(here, fidelity.Moments.of(x + 0.5))
  assert moved == pytest.approx(40 * 0.25, rel=1e-5)


def test_kernel_distance_by_hand():
  """One feature, k(p, q) = (p q + 1)^3, blocks of two rows each."""
  x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [-1.0]])
  cross = np.mean([1.0, 0.0, 1.0, -1.0])
  found, error = fidelity.kernel_distance(np.tile(x, (3, 1)), np.tile(y, (3, 1)), 3)
  assert found == pytest.approx(27.0 + 1.0 - 2.0 * cross)
  assert error == pytest.approx(0.0)


def test_kernel_distance_has_no_bias_and_an_honest_error():
  """Over 60 pairs of equal distributions: mean 0, spread as the standard error says."""
  found = np.array(
    [
      fidelity.kernel_distance(normal(2 * s, 60, 4), normal(2 * s + 1, 60, 4), 10)
      for s in range(60)
    ]
  )
  spread = found[:, 0].std(ddof=1)
  assert abs(found[:, 0].mean()) < 3 * spread / 60**0.5
  assert found[:, 1].mean() == pytest.approx(spread, rel=0.25)
  apart, error = fidelity.kernel_distance(normal(0, 60, 4), normal(1, 60, 4) + 1.0)
  assert apart > 3 * error


def test_precision_and_recall():
  """Equal sets 1 and 1; half of what is drawn far away, half of what is real missed."""
  x = normal(0, 40, 5)
  assert fidelity.precision_recall(x, x) == (1.0, 1.0)
  assert fidelity.precision_recall(x, x + 100.0) == (0.0, 0.0)
  near, far = normal(1, 20, 2), normal(2, 20, 2) + 50.0
  other = normal(3, 20, 2) - 50.0
  real, drawn = np.concatenate([near, far]), np.concatenate([near, other])
  assert fidelity.precision_recall(real, drawn) == (0.5, 0.5)
  narrow = np.concatenate([near[:1] + 1e-6 * normal(4, 20, 2)] * 2)
  precision, recall = fidelity.precision_recall(near, narrow)
  assert precision == 1.0 and recall <= 0.1


def test_the_radius_is_that_of_the_kth_other_row():
  """Of 0, 1, 3, 7 on a line the ball around 7 reaches to 3 for k = 1, to 1 for 2."""
  x = np.array([[0.0], [1.0], [3.0], [7.0]])
  for k, share in ((1, 0.0), (2, 1.0)):
    drawn = np.full((3, 1), 11.5)
    assert fidelity.precision_recall(x, drawn, k)[0] == share


def test_pieces_of_tables_do_not_show(monkeypatch):
  x, y = normal(0, 30, 3), normal(1, 30, 3)
  whole = fidelity.precision_recall(x, y), fidelity.nearest(x, y, 2)
  monkeypatch.setattr(fidelity, "_ROWS", 7)
  parts = fidelity.precision_recall(x, y), fidelity.nearest(x, y, 2)
  assert parts[0] == whole[0]
  for a, b in zip(whole[1], parts[1], strict=True):
    np.testing.assert_array_equal(a, b)


def test_nearest_and_memorised():
  """Of three images one is a copy, one nearly so, one between its neighbours."""
  y = np.array([[0.0, 0.0], [10.0, 0.0]])
  x = np.array([[10.0, 0.0], [2.4, 0.0], [4.0, 3.0]])
  distances, index = fidelity.nearest(x, y, 2)
  assert index.tolist() == [[1, 0], [0, 1], [0, 1]]
  np.testing.assert_allclose(distances, [[0, 10], [2.4, 7.6], [5, 45**0.5]])
  assert fidelity.memorised(distances) == pytest.approx(2 / 3)


def test_psnr_by_hand():
  x = np.zeros((2, 4, 4, 3), np.uint8)
  y = x.copy()
  y[1, 0, 0, 0] = 48  # a mean square of 48
  found = fidelity.psnr(x, y)
  assert np.isinf(found[0]) and found[1] == pytest.approx(10 * np.log10(255**2 / 48))
  np.testing.assert_array_equal(fidelity.psnr(y, x), found)  # no uint8 overflow


def test_ssim_of_equal_and_of_flat_images():
  """Flat images have the luminance term alone; equal ones have 1."""
  x = np.random.default_rng(0).integers(0, 256, (2, 16, 13, 3)).astype(np.uint8)
  np.testing.assert_allclose(fidelity.ssim(x, x), 1.0)
  a, b = np.full_like(x, 100), np.full_like(x, 150)
  c1 = 2.55**2
  want = (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)
  np.testing.assert_allclose(fidelity.ssim(a, b), want)


def test_ssim_by_hand():
  """One window, one lit pixel in its middle against none: all from its weight w."""
  x, y = np.zeros((2, 1, 11, 11, 1), np.uint8)
  x[0, 5, 5, 0] = 200
  w = (1 / np.exp(-0.5 * np.square(np.arange(-5, 6) / 1.5)).sum()) ** 2
  mean, variance = 200 * w, 200**2 * (w - w**2)
  c1, c2 = 2.55**2, 7.65**2
  want = c1 / (mean**2 + c1) * c2 / (variance + c2)
  np.testing.assert_allclose(fidelity.ssim(x, y), want)


def test_what_cannot_be_measured():
  x = normal(0, 3, 2)
  few = fidelity.Moments.of(x[:1])
  for measure in (
    lambda: fidelity.frechet(few, few),
    lambda: fidelity.kernel_distance(x, x),
    lambda: fidelity.precision_recall(x, x),
    lambda: fidelity.ssim(*np.zeros((2, 1, 8, 8, 1), np.uint8)),
  ):
    with pytest.raises(InputError, match="need"):
      measure()
