"""Scaling laws: the loss of a model of N parameters after D tokens (or images).

    L(N, D) = E + A / N^alpha + B / D^beta

A ladder of runs spends a few budgets of FLOPs, each on models of several sizes (see
`ladder`). Two fits of what came of it, both with intervals by a bootstrap:

    valleys     at each budget a parabola of the loss in log N, whose minimum is the
                best size; then N = k C^a over budgets ("approach 2")
    surface     L(N, D) by a Huber loss of log L ("approach 3")

The bootstrap draws seeds within points, and for the surface also points. The mean of n
seeds drawn from n is too narrow by sqrt(1 - 1 / n): the deviation is widened by that.
The spread of few seeds is itself uncertain: the exponent's interval goes from a normal
distribution to Student's t, with Welch and Satterthwaite's degrees of freedom.
A parabola that opens downwards, and a minimum outside the sizes that were tried, are
refused: there is no optimum to report.

Source: Hoffmann et al. 2022 (arXiv:2203.15556) sections 3.2, 3.3 and appendix D.2.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gen_jax import errors
from gen_jax.sweeps import statistics
from gen_jax.types import InputError

_HUBER = 1e-3  # of log L, where absolute errors begin to count less than squares
_NEAR = 1.1  # budgets that differ by less are one
_EFFORT = {"maxiter": 2_000, "maxfun": 4_000}
_LOST = 0.05  # share of a bootstrap's draws that may be without a fit
_STEEPEST = 20.0  # exponent; beyond it a draw has no power law, and powers overflow


class Point(NamedTuple):
  """Runs of one size on one number of tokens, a loss for each seed.

  Attributes:
    params: N, all parameters.
    items: D, tokens or images that were trained on.
    flops: of the model, forwards and backwards, on these.
    losses: of the seeds.
  """

  params: float
  items: float
  flops: float
  losses: tuple[float, ...]


class Valley(NamedTuple):
  """The best that a budget of `flops` buys: N, D and the loss there."""

  flops: float
  params: float
  items: float
  loss: float


class Optimum(NamedTuple):
  """The best size at each budget, and how it grows: N = k C^exponent."""

  valleys: tuple[Valley, ...]
  exponent: statistics.Interval


class Surface(NamedTuple):
  """L(N, D), see the module.

  >>> round(Surface(1.69, 406.4, 410.7, 0.34, 0.28)(70e9, 1.4e12), 2)
  1.94
  """

  e: float
  a: float
  b: float
  alpha: float
  beta: float

  def __call__(self, params: float, items: float) -> float:
    return self.e + self.a / params**self.alpha + self.b / items**self.beta

  def best(self, product: float) -> tuple[float, float]:
    """The N and D of the lowest loss with N D = product."""
    ratio = self.alpha * self.a / (self.beta * self.b)
    both = self.alpha + self.beta
    params = ratio ** (1.0 / both) * product ** (self.beta / both)
    return params, product / params


class Forecast(NamedTuple):
  """What a surface says of N and D that nobody has run."""

  loss: statistics.Interval
  times: float  # more FLOPs (N D) than the largest run


def _draws(
  points: Sequence[Point], num: int, seed: int, *, of_points: bool
) -> Iterable[list[tuple[Point, float]]]:
  """Bootstrap draws of (point, mean loss): seeds within points, see the module."""
  generator = np.random.default_rng(seed)
  for _ in range(num):
    chosen = points
    if of_points:
      chosen = [points[i] for i in generator.integers(0, len(points), len(points))]
    drawn = []
    for point in chosen:
      losses, n = np.asarray(point.losses), len(point.losses)
      mean = losses.mean()
      moved = generator.choice(losses, n).mean() - mean
      drawn.append((point, float(mean + moved * math.sqrt(n / max(n - 1, 1)))))
    yield drawn


def _means(points: Sequence[Point]) -> list[tuple[Point, float]]:
  return [(point, sum(point.losses) / len(point.losses)) for point in points]


def _check(points: Sequence[Point], least: int, what: str) -> None:
  if len(points) < least:
    raise InputError(f"{what} needs at least {least} points, got {len(points)}")
  for point in points:
    if len(point.losses) < 2:
      raise InputError(
        f"N={point.params:.3g}, D={point.items:.3g} has one seed; an interval needs two"
      )
    if not all(math.isfinite(x) and x > 0 for x in point.losses):
      raise InputError(f"losses must be finite and above 0, got {point.losses}")


def _interval(value: float, drawn: Sequence[float], level: float, wider: float = 1.0):
  tails = 50.0 * (1.0 - level), 50.0 * (1.0 + level)
  low, high = value + wider * (np.percentile(drawn, tails) - value)
  return statistics.Interval(value, float(low), float(high), len(drawn), level)


def _wider(fit: Callable[[np.ndarray], float], points: Sequence[Point], level: float):
  """How much wider Student's t is than a normal distribution, for a number from means.

  Its degrees of freedom are Welch and Satterthwaite's, (sum v)^2 / sum v^2 / (n - 1),
  where v is a point's part of the variance: slope^2 s^2 / n.

  Args:
    fit: the mean losses of the points -> the number.
  """
  _, special = _scipy()
  means = np.array([np.mean(point.losses) for point in points])
  moves = 1e-5 * np.diag(means)
  slopes = [(fit(means + m) - fit(means - m)) / (2.0 * m.sum()) for m in moves]
  n = np.array([len(point.losses) for point in points])
  part = np.square(slopes) * [np.var(p.losses, ddof=1) for p in points] / n
  freedom = part.sum() ** 2 / (part**2 / (n - 1)).sum() if part.any() else np.inf
  tail = 0.5 * (1.0 + level)
  return float(special.stdtrit(freedom, tail) / special.ndtri(tail))


def budgets(points: Sequence[Point]) -> list[list[Point]]:
  """Points of (nearly) equal FLOPs, together."""
  groups: list[list[Point]] = []
  for point in sorted(points, key=lambda p: p.flops):
    if groups and point.flops < _NEAR * groups[-1][0].flops:
      groups[-1].append(point)
    else:
      groups.append([point])
  return groups


def valley(drawn: Sequence[tuple[Point, float]]) -> Valley:
  """The minimum of a parabola of the loss in log N, of points of one budget.

  Raises:
    InputError: fewer than three sizes, a parabola that opens downwards, or a minimum
      outside the sizes.
  """
  flops = float(np.mean([point.flops for point, _ in drawn]))
  size = np.log([point.params for point, _ in drawn])
  at = f"at {flops:.3g} FLOPs"
  if len({*size}) < 3:
    raise InputError(f"{at} there are {len({*size})} sizes; a valley needs at least 3")
  centre = size.mean()  # far from 0 the powers are nearly parallel
  a, b, c = np.polyfit(size - centre, [loss for _, loss in drawn], 2)
  if not a > 0.0:
    raise InputError(
      f"{at} the loss is no valley in log N: the parabola opens downwards; run smaller"
      " and larger sizes, or more seeds"
    )
  lowest = centre - 0.5 * b / a
  if not size.min() <= lowest <= size.max():
    side = "smaller" if lowest < size.min() else "larger"
    raise InputError(
      f"{at} the best size lies outside those tried (N = {math.exp(size.min()):.3g} to"
      f" {math.exp(size.max()):.3g}); run {side} ones"
    )
  items = np.polyfit(size - centre, np.log([p.items for p, _ in drawn]), 1)
  best = math.exp(lowest), math.exp(float(np.polyval(items, lowest - centre)))
  return Valley(flops, *best, float(c - 0.25 * b * b / a))


def _growth(valleys: Sequence[Valley]) -> float:
  flops, params = np.log([(v.flops, v.params) for v in valleys]).T
  return float(np.polyfit(flops, params, 1)[0])


def _kept(fit: Callable[[Any], Any], draws: Iterable[Any], num: int) -> list[Any]:
  """fit(draw) of the draws that have one; InputError if too many of `num` do not."""
  found, lost = [], 0
  for draw in draws:
    try:
      found.append(fit(draw))
    except InputError as error:
      lost, why = lost + 1, error
  if lost > _LOST * num:
    raise InputError(
      f"{lost} of {num} draws of the seeds have no fit ({why}); run more seeds"
    )
  return found


def optimum(
  points: Sequence[Point], *, num: int = 500, seed: int = 0, level: float = 0.95
) -> Optimum:
  """The best size of each budget, and the exponent of its growth ("approach 2").

  Raises:
    InputError: one budget, one seed, or no valley: see `valley`; also where more than
      a twentieth of the draws have none.
  """
  groups = budgets(points)
  _check(points, 6, "the growth of the best size")
  if len(groups) < 2:
    raise InputError(
      f"all points have one budget, {groups[0][0].flops:.3g} FLOPs: growth needs two"
    )
  found = tuple(valley(_means(group)) for group in groups)
  draws = zip(
    *(_draws(g, num, seed + i, of_points=False) for i, g in enumerate(groups)),
    strict=True,
  )
  ordered = list(itertools.chain(*groups))

  def growth(losses: np.ndarray) -> float:
    pairs = iter(zip(ordered, losses.tolist(), strict=True))
    return _growth([valley(list(itertools.islice(pairs, len(g)))) for g in groups])

  drawn = _kept(lambda parts: _growth([valley(part) for part in parts]), draws, num)
  wider = _wider(growth, ordered, level)
  return Optimum(found, _interval(_growth(found), drawn, level, wider))


def _scipy():
  """scipy, an extra; imported with the module it would come before numpy is whole."""
  with errors.extra("sweeps"):
    from scipy import optimize, special
  return optimize, special


def _huber(theta: np.ndarray, size, data, target) -> tuple[float, np.ndarray]:
  """The Huber loss of log L and its gradient, for the logarithms of N, D and L.

  theta = log E, log A, log B, alpha, beta; of A and B where size and data are 0.
  """
  (_, special), (e, a, b, alpha, beta) = _scipy(), theta
  terms = np.stack([np.full_like(size, e), a - alpha * size, b - beta * data])
  rest = special.logsumexp(terms, axis=0) - target
  pull = np.clip(rest, -_HUBER, _HUBER)
  share = special.softmax(terms, axis=0) * pull
  slopes = [*share.sum(1), -(share[1] * size).sum(), -(share[2] * data).sum()]
  return float(special.huber(_HUBER, rest).sum()), np.array(slopes)


def _starts(target: np.ndarray) -> Iterable[np.ndarray]:
  """Starts: exponents and shares of E in the mean loss from a grid."""
  level = float(target.mean())
  for alpha, beta, share in itertools.product(*[(0.2, 0.5, 1.0)] * 2, (0.1, 0.5, 0.9)):
    term = level + math.log(0.5 * (1.0 - share))
    yield np.array([level + math.log(share), term, term, alpha, beta])


def _fit(drawn: Sequence[tuple[Point, float]], start=None) -> tuple[Surface, Any]:
  """The surface of points and losses, and theta; by L-BFGS, the best of all starts.

  Raises:
    InputError: the losses follow no power law.
  """
  size = np.log([point.params for point, _ in drawn])
  data = np.log([point.items for point, _ in drawn])
  target = np.log([loss for _, loss in drawn])
  args = (size - size.mean(), data - data.mean(), target)  # nearly orthogonal

  def cost(theta):  # scaled: it stops at absolute changes, and squares are small
    return tuple(1e6 * x for x in _huber(theta, *args))

  optimize, _ = _scipy()
  tried = [
    optimize.minimize(cost, one, jac=True, method="L-BFGS-B", options=_EFFORT)
    for one in (_starts(target) if start is None else [start])
  ]
  best = min(tried, key=lambda result: result.fun).x
  e, a, b, alpha, beta = best.tolist()
  if not max(abs(alpha), abs(beta)) <= _STEEPEST:
    raise InputError(
      f"the losses follow no power law (alpha = {alpha:.2g}, beta = {beta:.2g}); run"
      " more seeds, or more sizes"
    )
  a, b = a + alpha * float(size.mean()), b + beta * float(data.mean())
  return Surface(math.exp(e), math.exp(a), math.exp(b), alpha, beta), best


class Fitted(NamedTuple):
  """A surface and those of the bootstrap's draws.

  Attributes:
    surface: of all points.
    drawn: of the draws.
    per_pair: FLOPs / (N D), the median over the points; about 6 for transformers.
    most: the largest N D of a point.
  """

  surface: Surface
  drawn: tuple[Surface, ...]
  per_pair: float
  most: float
  level: float = 0.95

  def interval(self, of: Callable[[Surface], float]) -> statistics.Interval:
    """Any number that follows from a surface, with its interval."""
    return _interval(of(self.surface), [of(one) for one in self.drawn], self.level)

  def forecast(self, params: float, items: float) -> Forecast:
    """The loss of a model of N parameters after D tokens or images."""
    loss = self.interval(lambda surface: surface(params, items))
    return Forecast(loss, params * items / self.most)

  def best(self, flops: float) -> tuple[float, float]:
    """N and D of the lowest loss that a budget of FLOPs buys."""
    return self.surface.best(flops / self.per_pair)


def surface(
  points: Sequence[Point], *, num: int = 200, seed: int = 0, level: float = 0.95
) -> Fitted:
  """L(N, D) of a ladder's points ("approach 3").

  Raises:
    InputError: fewer than nine points, one seed, one size or one number of tokens, or a
      loss that falls with neither.
  """
  # Of nine points two draws in three have six that differ, one more than constants.
  _check(points, 9, "L(N, D), which has five constants,")
  for name in ("params", "items"):
    if len({getattr(point, name) for point in points}) < 3:
      raise InputError(f"L(N, D) needs at least 3 different values of {name}")
  found, theta = _fit(_means(points))
  if min(found.alpha, found.beta) <= 0.0:
    raise InputError(
      f"the loss does not fall with N and D (alpha = {found.alpha:.2g}, beta ="
      f" {found.beta:.2g}): the ladder is too short or too noisy for L(N, D)"
    )
  draws = _draws(points, num, seed, of_points=True)
  drawn = _kept(
    lambda d: _fit(d, theta)[0], (d for d in draws if len({p for p, _ in d}) > 5), num
  )
  pairs = [point.params * point.items for point in points]
  costs = [p.flops / pair for p, pair in zip(points, pairs, strict=True)]
  return Fitted(found, tuple(drawn), float(np.median(costs)), max(pairs), level)
