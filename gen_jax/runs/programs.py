"""What a run compiles: runs that differ in numbers and seeds alone share it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen_jax import build, ranges
from gen_jax import experiment as experiments
from gen_jax import numbers as numbering
from gen_jax.cost import plan
from gen_jax.train import health
from gen_jax.train import state as states
from gen_jax.train import step as steps
from gen_jax.types import Array, Batch, PyTree


def config_numbers(config: build.Config) -> dict[str, float | int]:
  """{key: value} of what compiled programs take as arguments, see `gen_jax.numbers`."""
  found = {}
  for key in build.keys(config):
    if not build.is_block(key.path.rpartition(".")[2], key.hint):
      value = ranges.typed(key.value, key.hint, key.path)
      if ranges.is_argument(value, key.hint):
        found[key.path] = value
  return found


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
  """All that is compiled for a run; runs that differ in numbers and seeds share it.

  Attributes:
    experiment: without the weights of `frozen`.
    optimizer: of all its steps.
    rate: step -> learning rate.
    abstract: the state's shapes and shardings.
    make_state: seed -> state at step 0.
    step: the training step, to be jitted.
    numbers: that it meets, see `numbers.met`.
    gradient: for the check of the first batch, see `health.gradients`.
    compute: FLOPs a step, see `Experiment.flops_per_step`.
    num_examples: of an epoch.
    num_steps: of the whole run.
    values: numbers of the run's config, of one that shares the programs of another.
  """

  experiment: experiments.Experiment
  optimizer: optax.GradientTransformation
  rate: numbering.Jitted
  abstract: states.TrainState
  make_state: Callable[[int], states.TrainState]
  step: steps.Step
  numbers: numbering.Numbers
  gradient: Callable[[int], health.Gradient]
  compute: Mapping[str, float]
  num_examples: int
  num_steps: int
  values: numbering.Numbers | None = None

  @property
  def held(self) -> tuple[PyTree, ...]:
    """Abstract arguments of the step but for its numbers."""
    made = self.experiment
    return self.abstract, made.abstract_frozen(), made.batch()

  def arguments(self) -> numbering.Numbers:
    """The step's numbers, on its devices."""
    numbers = numbering.rounded(numbering.arguments(self.numbers, self.values))
    return jax.device_put(numbers, self.experiment.layout.replicated)

  def compiled(self) -> steps.Step:
    """The step, compiled, of a run that has its devices for itself.

    Raises:
      InputError: it needs more memory than there is.
    """
    plan.check_fits(self.experiment, self.abstract, self._lowered.compile())
    return self._jitted

  @functools.cached_property
  def _jitted(self) -> jax.stages.Wrapped:
    return steps.compile_step(self.step, self.abstract, self.experiment.layout)

  @functools.cached_property
  def _lowered(self) -> jax.stages.Lowered:
    return self._jitted.lower(*self.held, self.arguments())

  @functools.cached_property
  def text(self) -> str:
    """The lowered step: equal for runs that differ in its arguments alone."""
    return self._lowered.as_text()

  def is_of(self, experiment: experiments.Experiment) -> bool:
    """Whether the step of another run differs in its arguments alone; traces it."""
    num_steps = experiment.train.total_steps(
      self.num_examples, experiment.data.batch_size
    )
    step = _step(experiment, experiment.optimizer(num_steps)[0])
    return dataclasses.replace(self, step=step).text == self.text

  @property
  def has_slow_loops(self) -> bool:
    """Whether XLA runs the step many times slower inside a loop.

    CPUs do so with gradients of convolutions.
    """
    return self.experiment.layout.on_cpu and "stablehlo.convolution" in self.text

  def of(self, experiment: experiments.Experiment, num_examples: int) -> "Program":
    """What another run has of it, whose config differs in numbers and seeds."""
    num_steps = experiment.train.total_steps(num_examples, experiment.data.batch_size)
    values = {"num_steps": num_steps, **config_numbers(experiment.config)}
    return dataclasses.replace(
      self,
      experiment=experiment,
      rate=self.rate.under(values),
      num_examples=num_examples,
      num_steps=num_steps,
      values=values,
    )


def program(experiment: experiments.Experiment, num_examples: int) -> Program:
  """Traces what a run needs; compiles its learning rate alone.

  Raises:
    InputError: its state needs more memory than there is.
  """
  made, layout = experiment, experiment.layout
  num_steps = made.train.total_steps(num_examples, made.data.batch_size)
  optimizer, rate = made.optimizer(num_steps)
  rate = numbering.jit(rate)
  rate(0)  # compiled before anything is timed
  abstract = made.abstract_state(optimizer)
  plan.check_fits(made, abstract)
  step = _step(made, optimizer)
  return Program(
    experiment=made,
    optimizer=optimizer,
    rate=rate,
    abstract=abstract,
    make_state=states.maker(made.learner, optimizer, made.batch(), layout, abstract),
    step=step,
    numbers=numbering.met(step, abstract, made.abstract_frozen(), made.batch(), {}),
    gradient=health.gradients(made.learner, layout),
    compute=made.flops_per_step(),
    num_examples=num_examples,
    num_steps=num_steps,
  )


def _step(
  experiment: experiments.Experiment, optimizer: optax.GradientTransformation
) -> steps.Step:
  """Traced once for all programs that are made of it."""
  how = experiment.train
  step = steps.make_step(
    experiment.learner,
    optimizer,
    layout=experiment.layout,
    num_microbatches=how.num_microbatches,
    decay=how.ema_decay,
    warmup=how.ema_warmup,
  )
  return jax.jit(step, inline=True)


class Together:
  """States of several runs, stacked, whose steps one program takes.

  Attributes:
    num: of its places; runs that have ended leave some empty.
  """

  def __init__(self, program: Program, mode: str, num: int):
    self.num, self._step, self._num_batches = num, program.step, 1
    self._map = {"map": jax.lax.map, "vmap": lambda fn, arms: jax.vmap(fn)(arms)}[mode]
    replicated = program.experiment.layout.replicated
    self._stack = jax.jit(_stacked, out_shardings=replicated)
    self._program = jax.jit(self._all, donate_argnums=0, out_shardings=replicated)
    at = jax.tree.map(lambda x: x.sharding, program.abstract)
    self._at = jax.jit(_at, out_shardings=at)
    self._states = self._numbers = None
    self._measured: _Measured | None = None  # by the last step

  def load(
    self, states: Sequence[states.TrainState], numbers: Sequence[numbering.Numbers]
  ) -> None:
    """Puts runs into the places, with the numbers of their configs."""
    self._states, self._numbers = self._stack(states), self._stack(numbers)

  def step(self, frozen: PyTree, batches: Sequence[Batch]) -> list[steps.Metrics]:
    """Takes a step in every place, each with its batch.

    Batches that are one object are shared. Returns what each measured, on its way: by
    then the step before has ended, and this one is at work.
    """
    given = self._given(frozen, batches)
    self._states, metrics = self._program(self._states, *given)
    before, self._measured = self._measured, _Measured(metrics)
    if before is not None:
      before.values  # noqa: B018 (asking for them waits)
    return [self._measured.of(place) for place in range(self.num)]

  def compile(self, frozen: PyTree, batches: Sequence[Batch]) -> None:
    """Compiles what `step` runs."""
    self._program.lower(self._states, *self._given(frozen, batches)).compile()

  def _given(self, frozen: PyTree, batches: Sequence[Batch]) -> tuple[Any, ...]:
    unique = list({id(batch): batch for batch in batches}.values())
    which = [next(i for i, x in enumerate(unique) if x is b) for b in batches]
    unique += unique[:1] * (self._num_batches - len(unique))
    self._num_batches = len(unique)
    return frozen, unique, np.array(which, np.int32), self._numbers

  def state(self, place: int) -> states.TrainState:
    """The state of a run, as the step of that run alone would return it."""
    return self._at(self._states, place)

  def _all(self, states, frozen, batches, which, numbers):
    every = _stacked(batches)

    def one(arm):
      state, i, numbers = arm
      batch = _at(every, i) if len(batches) > 1 else batches[0]
      return self._step(state, frozen, batch, numbers)

    return self._map(one, (states, which, numbers))


class Placed:
  """What a step returns as the state of a run: its place in the stacked states."""

  def __init__(self, together: Together, place: int):
    self.together, self.place = together, place

  @functools.cached_property
  def whole(self):
    """A copy, for all but the next step."""
    return self.together.state(self.place)

  def is_of(self, state: Any) -> bool:
    """Whether a state is this one."""
    return state is self or state is self.__dict__.get("whole")


class _Measured:
  """Metrics of all runs, fetched at once when those of any are asked for."""

  def __init__(self, metrics: steps.Metrics):
    self.arrays, self._tree = jax.tree.flatten(metrics)

  @functools.cached_property
  def values(self) -> list[np.ndarray]:
    return jax.device_get(self.arrays)

  def of(self, place: int) -> steps.Metrics:
    """Those of one run."""
    every = range(len(self.arrays))
    return jax.tree.unflatten(self._tree, [_Number(self, i, place) for i in every])


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class _Number:
  """A number of `_Measured`, which answers to what is asked of an array."""

  measured: _Measured
  which: int
  place: int

  def is_ready(self) -> bool:
    return self.measured.arrays[self.which].is_ready()

  def block_until_ready(self) -> "_Number":
    self.measured.arrays[self.which].block_until_ready()
    return self

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    return self.measured.values[self.which][self.place]


def _stacked(trees: Sequence[PyTree]) -> PyTree:
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _at(trees: PyTree, i: Array | int) -> PyTree:
  return jax.tree.map(lambda x: x[i], trees)
