"""A search: arms proposed one after another, the best of them run on fresh seeds.

    def get_search():
      return {
        "optimizer.learning_rate.peak": log_uniform(1e-4, 1e-1),
        "task.model.dropout": uniform(0.0, 0.3),
        "train.num_steps": 200,
      }

in sweep.py. `search.json` of the search's folder, sealed and replaced whole, holds
every arm before it is begun and what it came to: the same command goes on, and one with
more arms runs those alone.

With halving an arm is trained in rungs: all arms for a part of their steps, the best of
them further, the best of those to the end. A rung is the beginning of the whole run,
with the learning rates of the whole run, and the next one goes on from its checkpoint.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gen_jax.build import config_files
from gen_jax.runs import lease
from gen_jax.sweeps import engine, ledger, search, space, sweep
from gen_jax.system import files
from gen_jax.train import evaluators
from gen_jax.types import InputError

NAME = "search.json"
_STEPS = "train.num_steps"
Entry = dict[str, Any]  # an arm's overrides, and its result after each rung


@dataclasses.dataclass(frozen=True)
class Search:
  """See the module's docstring.

  Attributes:
    folder, question, config, metric: see `sweep.Sweep`.
    space: what get_search returned.
    method: one of `search.METHODS`.
    num: arms to try.
    factor: of halving; None: every arm is trained to its end.
    seed: of what is drawn.
    num_fresh: seeds on which the best arm is run again.
    lengths: steps after which each rung ends; None is the end of the run.
  """

  folder: pathlib.Path
  question: str
  config: str
  metric: str
  space: search.Space
  method: str
  num: int
  factor: int | None
  seed: int
  num_fresh: int
  lengths: tuple[int | None, ...] = dataclasses.field(init=False)

  def __post_init__(self) -> None:
    if self.num < 2:
      raise InputError(f"--arms {self.num} must be at least 2")
    if self.num_fresh < 2:
      raise InputError(f"--fresh {self.num_fresh} must be at least 2, for an interval")
    if self.seed < 0:
      raise InputError(f"--seed {self.seed} must be at least 0")
    searched = search.ranges(self.space)
    if self.factor and _STEPS in searched:
      raise InputError(f"--halving needs one {_STEPS} for all arms; do not search it")
    if self.num > (size := search.size(self.space)):
      raise InputError(f"--arms {self.num} must be at most {size}, all that there are")
    first = search.propose(self.space, self.method, self.seed, (), 1)
    config = self._arms(first)[0].config
    lengths = (None,) if self.factor is None else _lengths(config, self.factor)
    object.__setattr__(self, "lengths", lengths)

  def _arms(self, overrides: Sequence[space.Overrides]) -> list[space.Arm]:
    """Checked, and named by what is searched."""
    every = [*self.space]
    named = [
      space.label({key: arm[key] for key in search.ranges(self.space)}, every)
      for arm in overrides
    ]
    return space.resolve(config_files.load(self.config), overrides, named)

  def _about(self) -> dict[str, Any]:
    shown = {key: str(value) for key, value in self.space.items()}
    found = {"config": self.config, "metric": self.metric, "space": shown}
    return {**found, "method": self.method, "seed": self.seed, "halving": self.factor}

  def entries(self, home: pathlib.Path) -> list[Entry]:
    """The arms so far.

    Raises:
      InputError: the folder holds another search.
    """
    path = home / NAME
    if not path.exists():
      return []
    there = files.read_sealed(path)
    if not files.fits(there, {"about": dict}) or not search.are_arms(there.get("arms")):
      raise InputError(
        f"{path} is damaged; restore it, or delete it: its arms are found again"
      )
    about = there["about"]
    for key, value in self._about().items():
      if about.get(key) != value:
        raise InputError(
          f"{path} is another search: {key} is {about.get(key)!r} there and {value!r}"
          " now; take another --to, or delete the folder"
        )
    return [{**e, "overrides": space.plain(e["overrides"])} for e in there["arms"]]

  def _write(self, home: pathlib.Path, entries: Sequence[Entry]) -> None:
    home.mkdir(parents=True, exist_ok=True)
    found = files.sealed({"about": self._about(), "arms": entries})
    files.write_json(home / NAME, found)

  def cost(self, entry: Entry, rung: int) -> float | None:
    """After a rung, lower is better; inf: it diverged; None: it is not there yet."""
    if len(entry["results"]) <= rung:
      return None
    value = entry["results"][rung]["value"]
    return math.inf if value is None else evaluators.cost(self.metric, value)

  def chosen(self, entries: Sequence[Entry], rung: int) -> list[Entry]:
    """The arms that a rung trains; none while one before is not done."""
    if rung == 0:
      return list(entries)
    before = self.chosen(entries, rung - 1)
    costs = [self.cost(entry, rung - 1) for entry in before]
    if None in costs:
      return []
    ranked = sorted(range(len(before)), key=lambda i: (costs[i], i))
    most = -(-len(entries) // self.factor**rung)
    return [before[i] for i in ranked[:most] if math.isfinite(costs[i])]

  def best(self, entries: Sequence[Entry]) -> Entry | None:
    """The best of the last rung, once all of it is done."""
    last = len(self.lengths) - 1
    chosen = [self.cost(entry, last) for entry in self.chosen(entries, last)]
    if len(entries) < self.num or not chosen or None in chosen:
      return None
    ended = [entry for entry in entries if self.cost(entry, last) is not None]
    found = min(ended, key=lambda entry: self.cost(entry, last))
    return found if math.isfinite(self.cost(found, last)) else None

  def fresh(self, best: Entry) -> list[space.Arm]:
    """The best arm on seeds that the search did not use."""
    config = self._arms([best["overrides"]])[0].config
    seeds = range(config["seed"] + 1, config["seed"] + 1 + self.num_fresh)
    made = [{**best["overrides"], "seed": seed} for seed in seeds]
    return space.resolve(config_files.load(self.config), made)

  def run(
    self, home: pathlib.Path, how: sweep.How
  ) -> Iterator[tuple[space.Arm, Mapping[str, Any]]]:
    """Runs what is missing, yields each arm as a rung of it ends.

    Raises:
      InputError: another search works in `home`, or it holds another search.
    """
    with lease.hold(home):
      entries = self.entries(home)
      yield from self._rung(home, entries, 0, how)
      while len(entries) < self.num:
        tried = [(entry["overrides"], self.cost(entry, 0)) for entry in entries]
        num = self.num - len(entries)
        num = min(num, how.jobs) if self.method == "tpe" else num
        new = search.propose(self.space, self.method, self.seed, tried, num)
        self._arms(new)
        entries += [{"overrides": arm, "results": []} for arm in new]
        self._write(home, entries)
        yield from self._rung(home, entries, 0, how)
      for rung in range(1, len(self.lengths)):
        yield from self._rung(home, entries, rung, how)
      if best := self.best(entries):
        yield from sweep.train(self.config, self.fresh(best), home, how)

  def _rung(self, home, entries, rung, how):
    todo = [e for e in self.chosen(entries, rung) if self.cost(e, rung) is None]
    arms = self._arms([entry["overrides"] for entry in todo])
    entry_of = {arm.sha256: entry for arm, entry in zip(arms, todo, strict=True)}
    until = self.lengths[rung]
    for arm, state in sweep.train(self.config, arms, home, how, (), until):
      if state["status"] in ledger.DONE:
        value = ledger.last(engine.workdir(home, arm), self.metric)
        value = value if state["status"] == "finished" else None
        entry_of[arm.sha256]["results"].append({"steps": until, "value": value})
        self._write(home, entries)
      yield arm, state

  def missing(self, home: pathlib.Path, best: Entry) -> int:
    """Runs of the best arm on fresh seeds that are not done."""
    return len(engine.left(self.fresh(best), engine.states(home), ledger.DONE))

  def lines(self, entries: Sequence[Entry], most: int | None) -> list[str]:
    """The arms, the best ones first, each with the values after its rungs."""
    arms = self._arms([entry["overrides"] for entry in entries])

    def rank(pair):
      rung = len(pair[1]["results"]) - 1
      return -rung, self.cost(pair[1], rung) if rung >= 0 else 0.0

    found = []
    for arm, entry in sorted(zip(arms, entries, strict=True), key=rank)[:most]:
      values = [
        f"{'diverged' if one['value'] is None else format(one['value'], '.5g')}"
        + (f" at step {one['steps']}" if one["steps"] else "")
        for one in entry["results"]
      ]
      found.append(f"{arm.name}: {', '.join(values) or 'missing'}")
    return found

  def ledger(self, home: pathlib.Path) -> dict[str, Any]:
    """The best arm's runs on fresh seeds, see `ledger.collect`; all others in `search`.

    Raises:
      InputError: the search is not done.
    """
    entries = self.entries(home)
    best = self.best(entries)
    if best is None:
      raise InputError(f"the search in {home} is not done; run it first")
    about = {"question": self.question, "config": self.config, "metric": self.metric}
    arms = self.fresh(best)
    workdirs = {arm.sha256: engine.workdir(home, arm) for arm in arms}
    found = ledger.collect(about, arms, engine.states(home), workdirs)
    names = [arm.name for arm in self._arms([e["overrides"] for e in entries])]
    named = [{"name": n, **e} for n, e in zip(names, entries, strict=True)]
    at_edge = [
      key
      for key, one in search.ranges(self.space).items()
      if one.is_edge(best["overrides"][key])
    ]
    own = {"best": entries.index(best), "lengths": self.lengths, "edges": at_edge}
    return {**found, "search": {**self._about(), **own, "arms": named}}


def _lengths(config: Mapping[str, Any], factor: int) -> tuple[int | None, ...]:
  train = config["train"]
  if train["num_epochs"] is not None:
    raise InputError("--halving needs train.num_epochs=None: rungs are steps")
  return (*search.rungs(train["num_steps"], factor)[:-1], None)


def load(path: pathlib.Path, **how: Any) -> Search:
  """The search of an experiment's sweep.py.

  Args:
    how: method, num, factor, seed and num_fresh of `Search`.

  Raises:
    InputError: see `sweep.opened` and `Search`.
  """
  file, module, found = sweep.opened(path, "get_search")
  try:
    search.ranges(found)
  except InputError as error:
    raise InputError(f"{file}: {error}") from None
  question = sweep.question(file, module)
  return Search(
    file.parent, question, module.CONFIG, module.METRIC, space.plain(found), **how
  )


def recorded(path: pathlib.Path, found: Mapping[str, Any]) -> sweep.Sweep:
  """The runs that a search has recorded, its best arm on fresh seeds, as a sweep.

  Raises:
    InputError: see `sweep.opened`; an override that the config refuses.
  """
  file, module, _ = sweep.opened(path, "get_search")
  names, overrides = (
    [arm[key] for arm in found["arms"]] for key in ("name", "overrides")
  )
  config = config_files.load(module.CONFIG)
  arms = space.resolve(config, [*map(space.plain, overrides)], names)
  about = (sweep.question(file, module), module.CONFIG, module.METRIC)
  return sweep.Sweep(file.parent, *about, arms)
