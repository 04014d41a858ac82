"""A sweep: the question of an experiment, its config, metric and arms.

An experiment is a folder with a sweep.py:

    \"\"\"Does the best learning rate move with width?\"\"\"
    from gen_jax.sweeps import product, values
    CONFIG, METRIC = "configs/lm/pydoc.py:smoke", "validation/loss"
    def get_sweep():
      return product(values("task.model.width", (64, 128)), values("seed", range(3)))

X_AXIS, if there, is the key along which its figure shows the metric, see `figure`, or
"size", of a ladder: see `valleys`. ALSO names further metrics, which are columns of the
table and parts of the figure.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gen_jax import ranges
from gen_jax.build import config_files
from gen_jax.runs import lease
from gen_jax.sweeps import engine, figure, groups, ledger, space
from gen_jax.system import files
from gen_jax.train import evaluators
from gen_jax.types import InputError, unknown

FILE, RESULTS = "sweep.py", "results.json"


@dataclasses.dataclass(frozen=True)
class Sweep:
  """See the module's docstring.

  Attributes:
    folder: of the experiment.
    question: the first line of sweep.py.
    config: file and argument of the base config.
    metric: that decides, as it stands in metrics.jsonl.
    arms: all, checked.
    x_axis: of the figure.
    also: further metrics.
  """

  folder: pathlib.Path
  question: str
  config: str
  metric: str
  arms: Sequence[space.Arm]
  x_axis: str = figure.STEP
  also: Sequence[str] = ()

  def only(self, overrides: space.Overrides) -> "Sweep":
    """The arms of one row: these overrides, every seed.

    Raises:
      InputError: there are none.
    """
    keys = space.keys([arm.overrides for arm in self.arms])  # others are settings
    wanted = ledger.key({k: v for k, v in overrides.items() if k in keys})
    arms = [arm for arm in self.arms if ledger.key(arm.overrides) == wanted]
    if not arms:
      raise InputError(f"{self.folder / FILE} has no arm {overrides}")
    return dataclasses.replace(self, arms=arms)

  def run(
    self, home: pathlib.Path, how: "How"
  ) -> Iterator[tuple[space.Arm, Mapping[str, Any]]]:
    """Runs what is not done; see `train`.

    Raises:
      InputError: another sweep works in `home`.
    """
    with lease.hold(home):
      yield from train(self.config, self.arms, home, how)

  def states(self, home: pathlib.Path) -> list[tuple[space.Arm, Mapping[str, Any]]]:
    """Every arm with what it has come to; status "missing" before it is begun."""
    known = engine.states(home)
    return [(arm, known.get(arm.sha256, {"status": "missing"})) for arm in self.arms]

  def ledger(self, home: pathlib.Path) -> dict[str, Any]:
    """See `ledger.collect`."""
    about = {"question": self.question, "config": self.config, "metric": self.metric}
    about |= {"also": [*self.also]} if self.also else {}
    workdirs = {arm.sha256: engine.workdir(home, arm) for arm in self.arms}
    return ledger.collect(about, self.arms, engine.states(home), workdirs)


class How(NamedTuple):
  """How arms are run.

  Attributes:
    words: of the command that trains one.
    jobs: processes at a time.
    together: words of the command that trains a group; (): there are no groups.
    mode: of groups, see `groups.run`.
    place: where the others run, see `engine.run`.
  """

  words: Sequence[str]
  jobs: int
  together: Sequence[str] = ()
  mode: str | None = None
  place: engine.Place | None = None


def train(
  config: str,
  arms: Sequence[space.Arm],
  home: pathlib.Path,
  how: How,
  done: Sequence[str] = ledger.DONE,
  until: int | None = None,
) -> Iterator[tuple[space.Arm, Mapping[str, Any]]]:
  """Trains arms that are not done, in groups where they can be, then the others.

  Args:
    config: file and argument of the base config.
    done: statuses that need no run.
    until: the step at which each arm stops, if before its end.
  """
  ended = set()
  if how.together:
    given = (how.together, how.jobs, how.mode, done, until)
    for arm, state in groups.run(arms, home, *given):
      ended |= {arm.sha256} if state["status"] in ledger.DONE else set()
      yield arm, state
  rest = [arm for arm in arms if arm.sha256 not in ended]
  run = command(config, how.words, [] if until is None else ["--until", str(until)])
  yield from engine.run(rest, home, run, how.jobs, done, how.place)


def record(
  folder: pathlib.Path, found: Mapping[str, Any], x_axis: str = figure.STEP
) -> None:
  """Writes a ledger to results.json; from that file the README's table and figure."""
  ledger.write(folder / RESULTS, found)
  found = ledger.read(folder / RESULTS)
  readme = folder / "README.md"
  if readme.exists():
    files.write(readme, ledger.render(files.read(readme), found))
  if x_axis == figure.SIZE:
    from gen_jax.sweeps import valleys  # which prices models

    image = valleys.png(found)
  else:
    image = figure.png(found, x_axis)
  files.write_bytes(folder / figure.FILE, image)


def command(
  config: str, words: Sequence[str], flags: Sequence[str] = ()
) -> engine.Command:
  """The processes of arms: `words`, then the flags of `gen-jax train`."""

  def train(arm: space.Arm, workdir: pathlib.Path) -> list[str]:
    overrides = [f"--config.{k}={space.text(v)}" for k, v in arm.overrides.items()]
    own = ["--config", config, "--workdir", str(workdir)]
    return [*words, *own, *flags, *overrides]

  return train


def file(path: pathlib.Path) -> pathlib.Path:
  """The sweep.py of an experiment's folder.

  Raises:
    InputError: there is none.
  """
  found = path / FILE if path.is_dir() else path
  if not found.is_file() or found.suffix != ".py":
    raise InputError(f"{path} has no {FILE}; an experiment's folder holds one")
  return found


def opened(path: pathlib.Path, name: str) -> tuple[pathlib.Path, Any, Any]:
  """sweep.py of an experiment's folder, its module, and what its function returns.

  Raises:
    InputError: no sweep.py, one that raises (file and line), or lacks a part; a metric
      of unknown direction.
  """
  found = file(path)
  try:
    module = config_files.module(str(found))
    missing = [n for n in ("CONFIG", "METRIC", name) if not hasattr(module, n)]
    if missing:
      raise InputError(f"{found} needs {', '.join(missing)}")
    made, also = getattr(module, name)(), getattr(module, "ALSO", ())
    ranges.typed((module.CONFIG, module.METRIC), tuple[str, ...], "(CONFIG, METRIC)")
    ranges.typed(also, tuple[str, ...], "ALSO")
  except InputError as error:
    raise InputError(  # noqa: B904
      f"{found}: {error}" if str(found) not in str(error) else str(error)
    )
  except (Exception, SystemExit) as error:  # a program: anything can happen in it
    raise InputError(config_files.failure(str(found), error)) from None
  evaluators.cost(module.METRIC, 0.0)
  return found, module, made


def question(path: pathlib.Path, module: Any) -> str:
  """The first line of a sweep.py."""
  return (module.__doc__ or path.parent.name).strip().partition("\n")[0]


def load(path: pathlib.Path) -> Sweep:
  """Runs sweep.py of an experiment's folder and checks all of its arms.

  Raises:
    InputError: see `opened` and `space.arms`.
  """
  found, module, made = opened(path, "get_sweep")
  if not isinstance(made, list) or not all(
    isinstance(arm, dict) and all(isinstance(key, str) for key in arm) for arm in made
  ):
    raise InputError(f"{found}: get_sweep must return a list of dicts of config keys")
  also = getattr(module, "ALSO", ())
  for metric in also:
    evaluators.cost(metric, 0.0)
  arms = space.arms(config_files.load(module.CONFIG), made)
  x_axis = getattr(module, "X_AXIS", figure.STEP)
  varied = space.varied([arm.overrides | s for arm in arms for _, s in arm.settings])
  known = (figure.STEP, figure.SIZE, *varied)
  if x_axis not in known:
    raise unknown(f"X_AXIS (of {found})", x_axis, known)
  about = (question(found, module), module.CONFIG, module.METRIC)
  return Sweep(found.parent, *about, arms, x_axis, also)
