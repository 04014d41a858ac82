"""Search spaces, and which arm to try next: at random, by Halton, or by TPE.

The next arms are a function of the space, the seed and what the arms before came to:
nothing is kept but the arms and their costs, so that a search goes on after a kill, and
with more arms, as if it had never stopped.
"""

import dataclasses
import hashlib
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gen_jax import errors
from gen_jax.sweeps import space as spaces
from gen_jax.system import files
from gen_jax.types import InputError, unknown

METHODS = ("tpe", "halton", "random")
_FIRST = 10  # arms that TPE leaves to Halton: it learns from those
_PATIENCE = 20_000  # points without a new arm among them: there is none left
_DIGITS = 4  # of a number that is drawn


@dataclasses.dataclass(frozen=True)
class Numbers:
  """Numbers from `low` to `high`, both included; drawn with four digits.

  Attributes:
    is_log: equal chances for equal ratios.
    is_whole: whole numbers alone.
  """

  low: float
  high: float
  is_log: bool = False
  is_whole: bool = False

  def __post_init__(self) -> None:
    ends = (self.low, self.high)
    kinds = int if self.is_whole else int | float
    if not all(isinstance(end, kinds) and math.isfinite(end) for end in ends):
      kind = "whole numbers" if self.is_whole else "numbers"
      raise InputError(f"a range needs two {kind}, low and high; it has {ends}")
    if not self.low < self.high or (self.is_log and self.low <= 0):
      least = "0 < low < high" if self.is_log else "low < high"
      raise InputError(f"a range needs {least}; it has low={ends[0]}, high={ends[1]}")

  def at(self, unit: float) -> float:
    """The number at `unit` of the range, which is in [0, 1)."""
    low, high = self.low, self.high + (1 if self.is_whole else 0)
    if self.is_log:
      value = low * (high / low) ** unit
    else:
      value = low + (high - low) * unit
    return self.plain(math.floor(value) if self.is_whole else value)

  def plain(self, value: float) -> float:
    """A number as it is written in an arm."""
    if self.is_whole:
      return int(min(max(value, self.low), self.high))
    return min(max(float(f"{value:.{_DIGITS}g}"), float(self.low)), float(self.high))

  @property
  def size(self) -> float:
    """Values that there are."""
    return self.high - self.low + 1 if self.is_whole else math.inf

  def is_edge(self, value: float) -> bool:
    """Whether a value lies in the first or last fiftieth of the range."""
    ends = (self.low, value, self.high)
    low, at, high = map(math.log, ends) if self.is_log else ends
    return not 0.02 <= (at - low) / (high - low) <= 0.98

  def distribution(self, optuna) -> Any:
    """The same for Optuna."""
    kinds = optuna.distributions
    kind = kinds.IntDistribution if self.is_whole else kinds.FloatDistribution
    return kind(self.low, self.high, log=self.is_log)

  def inside(self, value: Any) -> Any:
    """A value of an arm as Optuna has it."""
    return value


@dataclasses.dataclass(frozen=True)
class Choice:
  """One of several values, without an order."""

  options: tuple[Any, ...]

  def __post_init__(self) -> None:
    if len(self.options) < 2:
      raise InputError(f"a choice needs two values at least; it has {self.options!r}")

  def at(self, unit: float) -> Any:
    """The option at `unit`, which is in [0, 1)."""
    return self.options[int(unit * len(self.options))]

  def plain(self, value: int) -> Any:
    """The option of this number."""
    return self.options[value]

  @property
  def size(self) -> int:
    """Values that there are."""
    return len(self.options)

  def is_edge(self, value: Any) -> bool:
    """Options have no order."""
    del value
    return False

  def distribution(self, optuna) -> Any:
    """Numbers of options for Optuna, which takes few kinds of values."""
    return optuna.distributions.CategoricalDistribution(range(len(self.options)))

  def inside(self, value: Any) -> int:
    """The number of an option."""
    return self.options.index(value)


Range = Numbers | Choice
Space = Mapping[str, Any]  # dotted key -> Range, or the value of all arms


def uniform(low: float, high: float) -> Numbers:
  """Numbers from low to high.

  >>> uniform(0, 1).at(0.25)
  0.25
  """
  return Numbers(low, high)


def log_uniform(low: float, high: float) -> Numbers:
  """Positive numbers from low to high, equal chances for equal ratios.

  >>> log_uniform(1e-4, 1e-2).at(0.5)
  0.001
  """
  return Numbers(low, high, is_log=True)


def integers(low: int, high: int) -> Numbers:
  """Whole numbers from low to high, both included.

  >>> [integers(1, 3).at(unit) for unit in (0.0, 0.5, 0.99)]
  [1, 2, 3]
  """
  return Numbers(low, high, is_whole=True)


def choice(*options: Any) -> Choice:
  """One of the options.

  >>> choice("adamw", "lion").at(0.6)
  'lion'
  """
  return Choice(tuple(tuple(x) if isinstance(x, list) else x for x in options))


def ranges(space: Space) -> dict[str, Range]:
  """What is searched of a space, without the values of all arms.

  Raises:
    InputError: no dict of names, nothing to search, or the seed.
  """
  if not isinstance(space, Mapping) or not all(isinstance(key, str) for key in space):
    raise InputError("get_search must return a dict {config key: range or value}")
  found = {key: value for key, value in space.items() if isinstance(value, Range)}
  if not found:
    raise InputError(
      "get_search has nothing to search: give a key uniform, log_uniform, integers or"
      " choice of gen_jax.sweeps"
    )
  if "seed" in found:
    raise InputError("a seed cannot be searched: the best one is only the luckiest")
  return found


def size(space: Space) -> float:
  """The number of arms of a space; inf where a number is drawn from a range."""
  return math.prod(found.size for found in ranges(space).values())


def stream(space: Space, method: str, seed: int) -> Iterator[spaces.Overrides]:
  """Arms without end, each a function of its number: by Halton, or at random."""
  searched = ranges(space)
  for start in itertools.count(step=64):
    for units in _units(method, len(searched), seed, start, 64):
      drawn = zip(searched.items(), units, strict=True)
      yield {**space, **{key: found.at(unit) for (key, found), unit in drawn}}


def _units(method: str, size: int, seed: int, start: int, num: int) -> np.ndarray:
  """Points start, start + 1, ... of the unit cube: [num, size]."""
  if method == "random":
    return np.random.default_rng([seed, start]).random((num, size))
  with errors.extra("sweeps"):
    from scipy.stats import qmc
  points = qmc.Halton(size, rng=seed)
  return points.fast_forward(start).random(num)


def propose(
  space: Space,
  method: str,
  seed: int,
  tried: Sequence[tuple[spaces.Overrides, float | None]],
  num: int,
) -> list[spaces.Overrides]:
  """The next arms, each unlike all before.

  Args:
    tried: arms and their costs, lower is better; inf: diverged; None: not known.
    num: of arms. TPE knows the costs of `tried` alone, and so may give fewer.

  Raises:
    InputError: an unknown method; no arm is left that was not tried.
  """
  if method not in METHODS:
    raise unknown("method (--search)", method, METHODS)
  seen = {_key(arm) for arm, _ in tried}
  others = stream(space, "random" if method == "random" else "halton", seed)
  if method == "tpe" and len(tried) < _FIRST:
    num = min(num, _FIRST - len(tried))
  drawn = [None] * num
  if method == "tpe" and len(tried) >= _FIRST:
    drawn = _tpe(space, seed, tried, num)
  found = []
  for arm in drawn:
    if arm is None or _key(arm) in seen:
      arm = _fresh(others, seen)
    seen.add(_key(arm))
    found.append(arm)
  return found


def _fresh(arms: Iterator[spaces.Overrides], seen: set[str]) -> spaces.Overrides:
  for arm in itertools.islice(arms, len(seen) + _PATIENCE):
    if _key(arm) not in seen:
      return arm
  raise InputError(
    f"the search space seems to hold no more than {len(seen)} arms; give fewer --arms,"
    " or wider ranges"
  )


def _key(arm: spaces.Overrides) -> str:
  return repr(sorted(arm.items()))


def _tpe(space: Space, seed: int, tried, num: int) -> list[spaces.Overrides]:
  """Tree-structured Parzen estimator. Bergstra et al. 2011; Watanabe 2023 (2304.11127).

  Arms asked for together repel each other: each counts as a bad one for the next.
  """
  with errors.extra("sweeps"):
    import optuna
  searched = ranges(space)
  kinds = {key: found.distribution(optuna) for key, found in searched.items()}
  own = hashlib.sha256(f"{seed} {len(tried)}".encode()).digest()
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # constant_liar was an experiment for long
    sampler = optuna.samplers.TPESampler(
      seed=int.from_bytes(own[:4]), n_startup_trials=1, constant_liar=True
    )
  optuna.logging.set_verbosity(optuna.logging.ERROR)
  study = optuna.create_study(sampler=sampler)
  for arm, cost in tried:
    if cost is not None:
      params = {key: found.inside(arm[key]) for key, found in searched.items()}
      trial = optuna.trial.create_trial(
        params=params, distributions=kinds, value=float(cost)
      )
      study.add_trial(trial)
  asked = [study.ask(kinds).params for _ in range(num)]
  return [
    {**space, **{key: found.plain(one[key]) for key, found in searched.items()}}
    for one in asked
  ]


def are_arms(arms: Any) -> bool:
  """Whether these are the arms of a search, as its files hold them."""
  result = {"value": float | int | None, "steps": int | None}
  return isinstance(arms, list) and all(
    files.fits(arm, {"overrides": dict, "results": list})
    and all(files.fits(one, result) for one in arm["results"])
    for arm in arms
  )


def remark(found: Mapping[str, Any]) -> str:
  """What the part `search` of a ledger says, for below the table."""
  best = found["arms"][found["best"]]
  value = best["results"][-1]["value"]
  names = {"tpe": "TPE", "halton": "Halton's sequence", "random": "random draws"}
  text = (
    f"The best of {len(found['arms'])} arms by {names[found['method']]} (seed"
    f" {found['seed']}): {best['name']}. In the search it came to {value:.4g}; the"
    " table has it on fresh seeds: the best of many is in part the luckiest."
  )
  if found["halving"]:
    steps = ", ".join(map(str, found["lengths"][:-1]))
    text += (
      f" Successive halving: the best 1/{found['halving']} went on after {steps} steps."
    )
  if found["edges"]:
    text += f" Its {', '.join(found['edges'])} is near the end of the range searched."
  return text


def rungs(num_steps: int, factor: int) -> tuple[int, ...]:
  """Lengths of successive halving: a ninth, a third, all, for a factor of 3.

  Jamieson & Talwalkar 2016 (arXiv:1502.07943).

  >>> rungs(200, 3)
  (22, 66, 200)

  Raises:
    InputError: a factor below 2, or too few steps for it.
  """
  if factor < 2:
    raise InputError(f"--halving {factor} must be at least 2")
  found = (num_steps // factor**2, num_steps // factor, num_steps)
  if not found[0]:
    raise InputError(
      f"--halving {factor} needs a train.num_steps of at least {factor**2}; it is"
      f" {num_steps}"
    )
  return found
