"""Fits find what was planted, cover as they say, and refuse what has no optimum."""

import math

import numpy as np
import pytest
from scipy import stats

from gen_jax.sweeps import ladder, scaling, valleys
from gen_jax.types import InputError

TRUE = scaling.Surface(1.7, 60.0, 90.0, 0.36, 0.30)
SIZES = 2.0 ** np.arange(13, 21)


def rung(budget, size, truth=TRUE, noise=0.0, generator=None, seeds=3):
  items = budget / (6.0 * size)
  losses = truth(size, items) + noise * (
    generator.normal(size=seeds) if generator else np.zeros(seeds)
  )
  return scaling.Point(float(size), items, budget, tuple(losses.tolist()))


def around_the_best(budget, num=5, **how):
  """Sizes an octave apart around the best of a budget."""
  best, _ = TRUE.best(budget / 6.0)
  sizes = best * 2.0 ** (np.arange(num) - (num - 1) / 2 + 0.25)
  return [rung(budget, size, **how) for size in sizes]


def planted(noise=0.0, seed=0, **how):
  generator = np.random.default_rng(seed)
  how = {"noise": noise, "generator": generator, **how}
  return [p for b in (1e11, 4e11, 1.6e12, 6.4e12) for p in around_the_best(b, **how)]


def test_the_best_of_a_surface_is_its_lowest():
  params, items = TRUE.best(1e12)
  assert params * items == pytest.approx(1e12)
  nearby = [TRUE(params * f, items / f) for f in (0.98, 1.02)]
  assert TRUE(params, items) < min(nearby)


def test_valleys_find_the_planted_growth():
  found = scaling.optimum(planted(1e-4), num=100)
  exponent = TRUE.beta / (TRUE.alpha + TRUE.beta)
  assert found.exponent.mean == pytest.approx(exponent, abs=0.02)
  for valley in found.valleys:
    params, items = TRUE.best(valley.flops / 6.0)
    assert valley.params == pytest.approx(params, rel=0.1)
    assert valley.items == pytest.approx(items, rel=0.1)
    assert valley.loss == pytest.approx(TRUE(params, items), rel=2e-3)


def test_the_surface_is_the_planted_one():
  found = scaling.surface(planted(), num=5).surface
  np.testing.assert_allclose(found, TRUE, rtol=0.02)


def test_a_forecast_beyond_the_runs():
  fitted = scaling.surface(planted(2e-3), num=50)
  params, items = fitted.best(6.4e14)
  best = TRUE.best(6.4e14 / 6.0)
  assert params == pytest.approx(best[0], rel=0.5)
  forecast = fitted.forecast(*best)
  assert forecast.times == pytest.approx(100.0)
  assert forecast.loss.low < TRUE(*best) < forecast.loss.high
  assert forecast.loss.high - forecast.loss.low < 0.2
  assert params * items * fitted.per_pair == pytest.approx(6.4e14)


@pytest.mark.long
def test_intervals_of_the_exponent_cover_as_they_say():
  """300 ladders: the share that covers has a standard deviation of 1.3 %."""
  exponent = scaling.optimum(planted(), num=1).exponent.mean
  hits, trials = 0, 300
  for seed in range(trials):
    found = scaling.optimum(planted(3e-3, seed), num=200).exponent
    hits += found.low <= exponent <= found.high
  assert 0.925 <= hits / trials <= 0.98


@pytest.mark.parametrize("num", [2, 3, 9])
def test_of_one_point_the_interval_is_widened_to_students_t(num):
  point = rung(1e11, 2.0**14, noise=0.1, generator=np.random.default_rng(0), seeds=num)
  wider = stats.t.ppf(0.95, num - 1) / stats.norm.ppf(0.95)
  assert scaling._wider(lambda x: 3.0 * x[0], [point], 0.9) == pytest.approx(wider)


def test_degrees_of_freedom_add_up_over_points_of_one_spread():
  one, other = (
    scaling.Point(1e4, 1e6, 1e11, tuple(level + np.array([-0.1, 0.0, 0.1])))
    for level in (3.0, 5.0)
  )
  wider = stats.t.ppf(0.975, 2 + 2) / stats.norm.ppf(0.975)
  found = scaling._wider(lambda x: x[0] - x[1], [one, other], 0.95)
  assert found == pytest.approx(wider)
  steady = other._replace(losses=(5.0, 5.0, 5.0))  # its seeds add nothing
  wider = stats.t.ppf(0.975, 2) / stats.norm.ppf(0.975)
  found = scaling._wider(lambda x: x[0] - x[1], [one, steady], 0.95)
  assert found == pytest.approx(wider)


def test_a_hill_is_refused():
  hill = [p._replace(losses=tuple(10.0 - x for x in p.losses)) for p in planted()]
  with pytest.raises(InputError, match="opens downwards"):
    scaling.optimum(hill, num=2)


@pytest.mark.parametrize("side, factor", [("larger", 1 / 64), ("smaller", 64)])
def test_a_minimum_outside_the_sizes_is_refused(side, factor):
  best = TRUE.best(1e12 / 6.0)[0]
  sizes = best * factor * 2.0 ** np.arange(-2, 3)
  points = [rung(budget, size) for budget in (1e12, 2e12) for size in sizes]
  with pytest.raises(InputError, match=f"outside those tried.*run {side} ones"):
    scaling.optimum(points, num=2)


def test_a_valley_that_drowns_in_its_seeds_is_refused():
  with pytest.raises(InputError, match="draws of the seeds have no fit"):
    noisy = [
      p._replace(losses=tuple(x + d for x, d in zip(p.losses, (-0.4, 0.0, 0.4))))  # noqa: B905
      for p in planted()
    ]
    scaling.optimum(noisy, num=100)


def test_too_little_to_fit():
  points = planted()
  with pytest.raises(InputError, match="at least 9 points, got 8"):
    scaling.surface(points[:8])
  with pytest.raises(InputError, match="one budget"):
    scaling.optimum(around_the_best(1e12, 6))
  with pytest.raises(InputError, match="one seed"):
    scaling.surface(planted(seeds=1))
  with pytest.raises(InputError, match="3 different values of params"):
    scaling.surface([p._replace(params=1e5) for p in points])
  with pytest.raises(InputError, match="does not fall"):
    rising = [p._replace(losses=(0.1 * math.log(p.items),) * 3) for p in points]
    scaling.surface(rising, num=2)


def test_a_step_is_no_power_law():
  """Its exponent grows without an end, until powers overflow."""
  points = [
    scaling.Point(n, d, 6.0 * n * d, (3.0 + (n < 2e6) + 5.0 * d**-0.1,) * 2)
    for n in (1e6, 1e7, 1e8)
    for d in (1e8, 1e9, 1e10)
  ]
  with pytest.raises(InputError, match="follow no power law"):
    scaling.surface(points, num=2)


CONFIG = "configs/lm/pydoc.py:smoke"


def test_a_ladder_spends_its_budgets():
  """Steps times FLOPs of a step are the budget, for every size."""
  sizes = ladder.sizes(CONFIG, (16, 32, 64), depth=lambda width: width // 16)
  assert [arm["task.model.num_layers"] for arm in sizes] == [1, 2, 4]
  arms = ladder.arms(CONFIG, sizes, (2e9, 8e9), least_steps=10)
  assert len(arms) == 6
  for arm, budget in zip(arms, (2e9,) * 3 + (8e9,) * 3, strict=True):
    params, items, flops = ladder.measure(CONFIG, arm)
    assert flops == pytest.approx(budget, rel=0.06)
    assert items == arm["train.num_steps"] * 8 * 16
    assert params > 16 * 256
  with pytest.raises(InputError, match="too small for the ladder: 0 of 3 sizes"):
    ladder.arms(CONFIG, sizes, (1e6,))


def test_what_has_no_ladder():
  with pytest.raises(InputError, match="with a base_width"):
    ladder.sizes("configs/vae/emoji.py:smoke", (16, 32))
  with pytest.raises(InputError, match="num_epochs=None"):
    ladder.measure(CONFIG, {"train.num_epochs": 1})


def test_points_of_a_ledger():
  arms = [
    {"overrides": {"task.model.width": 16, "train.num_steps": 3, "seed": seed},
     "status": "finished", "value": 2.0 + seed, "curve": []}
    for seed in (0, 1)
  ]  # fmt: skip
  recorded = {"config": CONFIG, "metric": "validation/loss", "arms": arms}
  (point,) = ladder.points(recorded)
  assert point.losses == (2.0, 3.0)
  made = ladder.measure(CONFIG, {"task.model.width": 16, "train.num_steps": 3})
  assert point[:3] == made


def test_a_figure_marks_each_budgets_best_size_and_says_how_it_grows():
  points = planted(1e-3)
  left, right = valleys.draw(points, "loss").axes
  found = scaling.optimum(points)
  mean, low, high = found.exponent[:3]
  assert right.get_title() == f"N ~ C^a, a = {mean:.2f}, from {low:.2f} to {high:.2f}"
  stars = [line for line in right.lines if line.get_marker() == "*"]
  marked = [(line.get_xdata()[0], line.get_ydata()[0]) for line in stars]
  np.testing.assert_allclose(marked, [v[:2] for v in found.valleys], rtol=1e-6)
  # Through the middle of the marks, with the slope of the growth.
  x, y = np.log(right.lines[-3].get_data())
  middle = np.log(marked).mean(0)
  np.testing.assert_allclose(np.interp(middle[0], x, y), middle[1], rtol=1e-6)
  assert (y[-1] - y[0]) / (x[-1] - x[0]) == pytest.approx(mean)
  assert len(left.lines) == 3 * len(found.valleys)


def test_a_figure_of_what_has_no_valley_says_why():
  points = [p for b in (1e11, 4e11) for p in around_the_best(b, seeds=2)]
  hills = [p._replace(losses=tuple(9.0 - x for x in p.losses)) for p in points]
  left, right = valleys.draw(hills, "loss").axes
  assert "opens downwards" in right.get_title().replace("\n", " ")
  assert not right.lines and len(left.lines) == 4
