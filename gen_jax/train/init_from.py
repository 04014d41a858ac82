"""Weights to start from: those of another workdir, straight into this run's layout."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax

from gen_jax import tree
from gen_jax.system import files
from gen_jax.train import checkpoint
from gen_jax.types import InputError, Params, unknown


@dataclasses.dataclass(frozen=True)
class InitFrom:
  """A trained or imported model.

  Attributes:
    workdir: its folder.
    checkpoint: 'best', 'latest' or a step.
    weights: 'ema' (raw where no average is kept) or 'raw'.
  """

  workdir: str
  checkpoint: str = "best"
  weights: str = "ema"

  def __post_init__(self):
    which = self.checkpoint
    if which not in ("best", "latest") and not which.isdecimal():
      raise InputError(f"init_from.checkpoint={which!r} must be best, latest or a step")
    if self.weights not in ("ema", "raw"):
      raise unknown("init_from.weights", self.weights, ("ema", "raw"))

  @property
  def directory(self) -> pathlib.Path:
    return files.path(self.workdir, "init_from.workdir")


class CheckpointLayout(NamedTuple):
  """One way in which the same weights are stored.

  Attributes:
    goal: abstract parameters with shardings.
    convert: to the form that is asked for.
  """

  abstract: Params
  convert: Callable[[Params], Params]


@dataclasses.dataclass(frozen=True)
class Loaded:
  """Weights to start from.

  Attributes:
    params: in the layout that was asked for.
    step: that they are of.
    weights: 'ema' or 'raw'.
    sha256: of all that was read to make them.
  """

  params: Params
  step: int
  weights: str
  sha256: str


def load(
  source: InitFrom,
  layouts: Sequence[CheckpointLayout],
  warn: Callable[[str], None] = print,
) -> Loaded:
  """Reads the weights in whichever of `forms` they are stored.

  Args:
    forms: the first one is what is asked for; its `convert` is the identity.
    warn: see `checkpoint.find_step`.

  Raises:
    InputError: no such workdir or step, names or shapes that differ in either
      direction, or damage.
  """
  folder = source.directory / "checkpoints"
  if not folder.is_dir():
    raise InputError(
      f"init_from.workdir={source.workdir} has no checkpoints; name the folder of a"
      " trained or imported model"
    )
  with checkpoint.open_manager(source.directory, read_only=True) as manager:
    step = checkpoint.find_step(manager, source.checkpoint, warn)
    saved = checkpoint.saved_shapes(manager, step)
    has_average = any(path.startswith("ema/") for path in saved)
    part = "ema" if source.weights == "ema" and has_average else "params"
    shapes = {
      path.removeprefix(f"{part}/"): shape
      for path, shape in saved.items()
      if path.startswith(f"{part}/")
    }
    layout = _matching(layouts, shapes)
    restored = checkpoint.restore_weights(
      manager, layout.abstract, step=step, part=part, warn=warn
    )
    params = jax.tree.map(lambda x: x.copy(), restored[0])  # owned: it is donated
  if layout is not layouts[0]:
    params = _convert(params, layout, layouts[0].abstract)
  return Loaded(params, step, "ema" if part == "ema" else "raw", tree.sha256(params))


def fit(params: Params, layouts: Sequence[CheckpointLayout], where: str) -> Params:
  """Weights in memory, in whichever of `forms`, as the first of `forms` asks for.

  Args:
    where: they come from, for messages.

  Raises:
    InputError: names or shapes that differ in either direction.
  """
  shapes = _shapes(params)
  layout = _matching(layouts, shapes)
  checkpoint.check(where, shapes, layout.abstract)
  return _convert(params, layout, layouts[0].abstract)


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
  return {path: tuple(x.shape) for path, x in tree.flatten(params).items()}


def _matching(
  layouts: Sequence[CheckpointLayout], shapes: Mapping[str, tuple[int, ...]]
) -> CheckpointLayout:
  """The form of parameters of these names, of these shapes if any is, or the first."""
  named = [
    layout for layout in layouts if _shapes(layout.abstract).keys() == shapes.keys()
  ]
  exact = [layout for layout in named if _shapes(layout.abstract) == shapes]
  return next(iter((*exact, *named, *layouts)))


def _convert(params: Params, layout: CheckpointLayout, abstract: Params) -> Params:
  at = jax.tree.map(lambda x: x.sharding, abstract)
  return jax.jit(layout.convert, out_shardings=at)(params)
