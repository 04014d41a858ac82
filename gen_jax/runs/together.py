"""Several runs of one structure in one process: they compile once and step together.

An arm is an ordinary run, with its own folder, lease, loop, checkpoints and
evaluations. Arms are threads; one of them works at a time. At its step an arm hands
over (state, batch, numbers) and waits. When every arm has done so, one program takes
all of these steps, and each arm goes on with its own result.

    map    one after another within a program: to the bit what a run alone does
    vmap   at once, as larger products: the same to rounding
    turn   no group: each arm runs to its end, by the program of a run alone

An arm that ends (its last step, patience, divergence) leaves its place empty. When half
of the places are, the program is compiled again for those that are left.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from gen_jax import build, numbers
from gen_jax import experiment as experiments
from gen_jax.build import overrides as overriding
from gen_jax.data import kept
from gen_jax.runs import programs, training, workdir
from gen_jax.system import memory, signals
from gen_jax.train import step as steps
from gen_jax.types import Batch, Diverged, InputError, one_line

MODES = ("map", "vmap", "turn")
_TIMED = 3  # group steps of each mode
_EXACT = 0.9  # another mode is taken if it needs less than this share of map's time


class Apart(Exception):
  """This run needs other programs than the group has."""


@dataclasses.dataclass(frozen=True)
class Arm:
  """A run: its resolved config, its folder, and the step at which to stop, if any."""

  config: dict[str, Any]
  directory: pathlib.Path
  until: int | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a run of a group ended.

  Attributes:
    status: 'finished', 'diverged', 'interrupted', 'failed'; 'apart': it did not begin.
    line: why, if it has not finished.
    secs: its share of the process's time.
    mode: how it was trained; None if its process did not say.
  """

  status: str
  line: str
  secs: float
  mode: str | None


def structure(config: build.Config) -> str:
  """What runs of a group have in common: all but the seed and programs' numbers.

  A number that is 0 counts as structure: it often switches something off.
  """
  plain = workdir.flat(build.resolved(config))
  arguments = programs.config_numbers(config)
  for key in ("seed", *(key for key, value in arguments.items() if value)):
    plain.pop(key, None)
  return json.dumps(plain, sort_keys=True, default=str)


def run(
  arms: Sequence[Arm], mode: str | None, say: Callable[[str], None]
) -> Iterator[tuple[Arm, Outcome]]:
  """Trains runs of one structure; yields each as it ends.

  A signal stops all of them, each with a checkpoint.

  Args:
    mode: of `MODES`; None: `map` or `vmap` if a few steps of it take less time than
      steps in turn.
    say: gets what was measured and chosen.
  """
  if len({structure(arm.config) for arm in arms}) > 1:
    raise ValueError("the runs differ in more than numbers and seeds")
  group = _Group([arm.config for arm in arms], mode, say)
  members = [_Member(arm, group) for arm in arms]
  with signals.handling(), signals.held():
    left, waiting = members, members
    while left:
      while waiting:  # not for a step: for their turn, or for a disk
        for member in waiting:
          member.resume()
          if member.outcome:
            yield member.arm, member.outcome
        waiting = [m for m in waiting if not (m.call or m.outcome)]
      left = waiting = [member for member in left if not member.outcome]
      if left:
        group.take([member.call for member in left if member.call])


@dataclasses.dataclass(eq=False)
class _Call:
  """A step that a run asks for, and what comes of it.

  Attributes:
    args: of the step.
    placed: where the state is already, if the last step has left it there.
    result: of the step.
    secs: that it took.
  """

  args: tuple[Any, ...]
  placed: programs.Placed | None
  result: Any = None
  secs: float = 0.0

  @property
  def state(self):
    return self.placed.whole if self.placed else self.args[0]


class _Member(training.Solo):
  """An arm's thread, and what its run shares with the group."""

  def __init__(self, arm: Arm, group: "_Group"):
    self.arm = arm
    self.outcome: Outcome | None = None
    self.call: _Call | None = None
    self._group, self._secs = group, 0.0
    self._placed: programs.Placed | None = None
    self._go, self._back = threading.Lock(), threading.Lock()
    self._go.acquire(), self._back.acquire()
    threading.Thread(target=self._run, daemon=True).start()  # ends with the driver

  share = property(lambda self: self._group.share)

  def resume(self) -> None:
    """Lets the thread work until its next step, its end or a wait for the disk."""
    began = time.monotonic()
    self._go.release()
    self._back.acquire()
    self._secs += time.monotonic() - began
    if self.outcome:
      self.outcome = dataclasses.replace(self.outcome, secs=self._secs)

  def _run(self) -> None:
    self._go.acquire()
    status, line = "failed", ""
    try:
      given = self.arm.config, self.arm.directory, training.Alone(), self
      reason = training.train(*given, until=self.arm.until)["reason"]
      status = "interrupted" if reason == "interrupted" else "finished"
    except Diverged as error:
      status, line = "diverged", one_line(error)
    except Apart as error:
      status, line = "apart", one_line(error)
    except Exception as error:
      line = one_line(error)
      if not isinstance(error, InputError):
        traceback.print_exc()
    finally:  # whatever ends it, the group does not wait
      self.outcome = Outcome(status, line, 0.0, self._group.mode or "turn")
      self._back.release()

  def _step(self, *args: Any) -> Any:
    placed, self._placed = self._placed, None
    call = self.call = _Call(args, placed if placed and placed.is_of(args[0]) else None)
    self._back.release()
    self._go.acquire()
    self.call = None
    self._secs += call.secs
    if isinstance(call.result[0], programs.Placed):
      self._placed = call.result[0]
    return call.result

  def wait(self, manager) -> None:
    """Lets other runs work meanwhile."""
    self._back.release()
    try:
      super().wait(manager)
    finally:
      self._go.acquire()

  def whole(self, state: Any):
    return state.whole if isinstance(state, programs.Placed) else state

  def experiment(self, config: dict[str, Any], directory: pathlib.Path):
    self._group.lend_tokenizer(directory)
    with self._group.observed():
      return super().experiment(config, directory)

  def evaluators(self, experiment: experiments.Experiment):
    return self._group.evaluators(experiment)

  def program(self, experiment, num_examples: int) -> programs.Program:
    return self._group.program_of(experiment, num_examples, self.arm.directory)

  def step(self, program: programs.Program):
    del program
    return self._group.alone or self._step

  def stream(self, experiment, examples, first: int) -> Iterator[Batch]:
    fresh = super().stream(experiment, examples, first)
    return self._group.stream(experiment, first, fresh)


class _Group:
  """What the runs of a group share: programs, evaluators and batches.

  Attributes:
    mode: None until it is chosen.
    alone: a step by the program of a run alone, for runs in turn from the first on.
    share: of the device, for each run at work.
  """

  def __init__(self, configs, mode: str | None, say: Callable[[str], None]):
    self._configs, self.mode, self._say = configs, mode, say
    self.share = 1.0 / len(configs)
    self.alone: steps.Step | None = None
    self._program: programs.Program | None = None
    self._decisions: list[numbers.Decision] = []
    self._evaluators: dict[str, Any] = {}
    self._streams: dict[str, Iterator[Batch]] = {}
    self._together: programs.Together | None = None
    self._home: pathlib.Path | None = None  # of the first run

  def lend_tokenizer(self, directory: pathlib.Path) -> None:
    """Gives a run the tokenizer of the first one, which is made of the same data."""
    if self._program is not None:
      kept.tokenizer_folder(self._program.experiment.data, directory, self._home)

  @contextlib.contextmanager
  def observed(self) -> Iterator[None]:
    """Notes what is decided on numbers while the first run is built."""
    if self._program is not None:
      yield
      return
    with numbers.deciding() as decisions:
      yield
    self._decisions += decisions

  def program_of(
    self, experiment, num_examples: int, directory: pathlib.Path
  ) -> programs.Program:
    """The group's programs with a run's own numbers; the first run makes them."""
    if self._program is None:
      if experiment.layout.mesh.size > 1:
        raise Apart("runs of a group share one device; these have several each")
      if experiment.train.profile_steps or experiment.train.writers:
        raise Apart("a run that is profiled, or that a tracker follows, is alone")
      with self.observed():
        made = programs.program(experiment, num_examples)
      self._check_arguments(made, directory)
      self._program, self._home = made, directory
      if self.mode is None and (reason := self._why_in_turn(made)):
        self.mode = "turn"
        self._say(f"in turn: {reason}")
      if self.mode == "turn":
        self.alone, self.share = made.compiled(), 1.0
    made = self._program.of(experiment, num_examples)
    if made.values is not None and not self._is_alike(made.values):
      raise Apart("a number decides on the structure of its program")
    return made

  def _why_in_turn(self, made: programs.Program) -> str | None:
    """Why no program of several runs is tried; None: one is."""
    if made.has_slow_loops:
      return "gradients of convolutions inside loops are slow on CPUs"
    held = 2 * len(self._configs) * memory.bytes_per_device(made.abstract)
    if held > memory.available(made.experiment.layout.replicated):
      return "the states of all runs do not fit into memory together"
    return None

  def _is_alike(self, values: numbers.Numbers) -> bool:
    """Whether numbers of these values lead to the first run's programs."""
    return all(decision.holds(values) for decision in self._decisions)

  def _check_arguments(self, made: programs.Program, directory: pathlib.Path) -> None:
    """Raises Apart if a number that differs between the runs is a constant somewhere.

    Traces the step once more, with another value of each.
    """
    first = programs.config_numbers(self._configs[0])
    mixed: dict[str, float | int] = {}
    for config in self._configs[1:]:
      own = programs.config_numbers(config)
      if self._is_alike({"num_steps": config["train"]["num_steps"], **own}):
        mixed |= {key: value for key, value in own.items() if value != first[key]}
    if mixed:
      config = build.resolved(overriding.apply(self._configs[0], [*mixed.items()]))
      if not made.is_of(experiments.make(config, directory)):
        raise Apart(f"a value of {', '.join(mixed)} is a constant of the program")

  def evaluators(self, experiment: experiments.Experiment):
    """Evaluators, built once for all runs in which nothing that they read differs."""
    keys = ("seed", "task", "data", "sampling", "evaluators", "mesh")
    block = json.dumps([experiment.config[k] for k in keys], default=str)
    if block not in self._evaluators:
      self._evaluators[block] = experiment.evaluators()
    return self._evaluators[block]

  def stream(self, experiment, first: int, fresh: Iterator[Batch]) -> Iterator[Batch]:
    """Batches from `first` on, made once for runs of one seed that begin together."""
    if self.alone:
      return fresh
    key = json.dumps([experiment.config[k] for k in ("seed", "data")] + [first])
    self._streams[key], mine = itertools.tee(self._streams.get(key, fresh))
    return mine

  def take(self, calls: Sequence[_Call]) -> None:
    """Takes a step of every run."""
    self._streams.clear()  # all have begun: what they share, they hold
    if self.mode is None:
      self._choose(calls)
    began = time.monotonic()
    if self.mode == "turn":
      for call in calls:
        call.result = self._in_turn(*call.args)
    else:
      self._take_together(calls)
    for call in calls:
      call.secs = (time.monotonic() - began) / len(calls)

  def _take_together(self, calls: Sequence[_Call]) -> None:
    together = self._together
    if together is None or 2 * len(calls) <= together.num:
      assert self._program is not None and self.mode is not None  # a run has begun
      together = programs.Together(self._program, self.mode, len(calls))
      self._together = together
    placed = [call.placed for call in calls if call.placed]
    if len(placed) < len(calls) or any(p.together is not together for p in placed):
      placed = _load(together, calls)
    batches = [calls[0].args[2]] * together.num
    for call, at in zip(calls, placed, strict=True):
      batches[at.place] = call.args[2]
    metrics = together.step(calls[0].args[1], batches)
    for call, at in zip(calls, placed, strict=True):
      call.result = programs.Placed(together, at.place), metrics[at.place]

  def _choose(self, calls: Sequence[_Call]) -> None:
    """Takes the mode whose steps take the least time."""
    assert self._program is not None  # a run has begun
    _, frozen, batch, numbers = calls[0].args
    batches = [call.args[2] for call in calls]
    made = {m: programs.Together(self._program, m, len(calls)) for m in ("map", "vmap")}
    for one in made.values():
      one.load([c.state for c in calls], [c.args[3] for c in calls])
    with concurrent.futures.ThreadPoolExecutor() as pool:
      others = pool.map(lambda one: one.compile(frozen, batches), made.values())
      alone = self._in_turn = self._program.compiled()
      list(others)  # raises what they do
    secs = {}
    for mode, one in made.items():
      secs[mode] = _secs(functools.partial(one.step, frozen, batches))
    state = jax.tree.map(jax.numpy.copy, calls[0].state)

    def in_turn():
      nonlocal state
      state, metrics = alone(state, frozen, batch, numbers)
      return jax.device_get(metrics)

    secs["turn"] = len(calls) * _secs(in_turn)
    best = min(secs, key=secs.__getitem__)
    self.mode = best if secs[best] < _EXACT * secs["map"] else "map"
    self._together = made.get(self.mode)
    shown = ", ".join(f"{secs[m] * 1e3:.3g} ms by {m}" for m in MODES)
    self._say(f"a step of {len(calls)} runs takes {shown}: {self.mode}")


def _load(together: programs.Together, calls: Sequence[_Call]) -> list[programs.Placed]:
  """Puts the states of all calls into the first places, the first one into the rest."""
  padded = [*calls, *[calls[0]] * (together.num - len(calls))]
  together.load([c.state for c in padded], [c.args[3] for c in padded])
  return [programs.Placed(together, place) for place in range(len(calls))]


def _secs(step: Callable[[], Any]) -> float:
  """The least time of a few calls, after one that compiles."""
  times = []
  for _ in range(1 + _TIMED):
    times.append(-time.monotonic())
    jax.block_until_ready(step())
    times[-1] += time.monotonic()
  return min(times[1:])
