"""Initial weights from another workdir, loaded into this run's layout."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax

from gen_jax import tree
from gen_jax.system import files
from gen_jax.train import checkpoint, items
from gen_jax.types import InputError, Params, unknown


@dataclasses.dataclass(frozen=True)
class InitFrom:
  """A trained or imported model.

  Attributes:
    workdir: its folder.
    checkpoint: 'best', 'latest' or a step.
    weights: 'ema' (raw if there is no average) or 'raw'.
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
  """One layout in which the same weights are stored.

  Attributes:
    abstract: parameters with shardings.
    convert: to the requested layout.
  """

  abstract: Params
  convert: Callable[[Params], Params]


@dataclasses.dataclass(frozen=True)
class Loaded:
  """Weights to start from.

  Attributes:
    params: in the requested layout.
    step: of their checkpoint.
    weights: 'ema' or 'raw'.
    sha256: of the parameters.
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
  """Reads the weights in whichever of `layouts` they are stored.

  Args:
    layouts: the first is the requested one; its `convert` is the identity.
    warn: see `checkpoint.find_step`.

  Raises:
    InputError: no such workdir or step, missing, extra or mis-shaped parameters, or
      damage.
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
    assert restored is not None  # of one step: there, or it has raised
    params = jax.tree.map(lambda x: x.copy(), restored[0])  # owned: it is donated
  if layout is not layouts[0]:
    params = _convert(params, layout, layouts[0].abstract)
  return Loaded(params, step, "ema" if part == "ema" else "raw", tree.sha256(params))


def fit(params: Params, layouts: Sequence[CheckpointLayout], where: str) -> Params:
  """Converts weights in memory from any of `layouts` to the first.

  Args:
    where: source of the weights, for messages.

  Raises:
    InputError: missing, extra or mis-shaped parameters.
  """
  shapes = _shapes(params)
  layout = _matching(layouts, shapes)
  items.check(where, shapes, layout.abstract)
  return _convert(params, layout, layouts[0].abstract)


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
  return {path: tuple(x.shape) for path, x in tree.flatten(params).items()}


def _matching(
  layouts: Sequence[CheckpointLayout], shapes: Mapping[str, tuple[int, ...]]
) -> CheckpointLayout:
  """The layout with these names and shapes, else with these names, else the first."""
  named = [
    layout for layout in layouts if _shapes(layout.abstract).keys() == shapes.keys()
  ]
  exact = [layout for layout in named if _shapes(layout.abstract) == shapes]
  return next(iter((*exact, *named, *layouts)))


def _convert(params: Params, layout: CheckpointLayout, abstract: Params) -> Params:
  at = jax.tree.map(lambda x: x.sharding, abstract)
  return jax.jit(layout.convert, out_shardings=at)(params)
