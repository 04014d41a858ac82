"""Weights to start from: those of another workdir, straight into this run's layout."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from gen_jax import tree
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
    return pathlib.Path(self.workdir).expanduser()


class Form(NamedTuple):
  """One way in which the same weights are stored.

  Attributes:
    goal: abstract parameters with shardings.
    convert: to the form that is asked for.
  """

  goal: Params
  convert: Callable[[Params], Params]


@dataclasses.dataclass(frozen=True)
class Loaded:
  """Weights, the step they are of, and whether they are 'ema' or 'raw'."""

  params: Params
  step: int
  weights: str


def load(source: InitFrom, forms: Sequence[Form]) -> Loaded:
  """Reads the weights in whichever of `forms` they are stored.

  Args:
    forms: the first one is what is asked for; its `convert` is not called.

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
    step = checkpoint.find_step(manager, source.checkpoint)
    saved = checkpoint.saved_shapes(manager, step)
    has_average = any(path.startswith("ema/") for path in saved)
    part = "ema" if source.weights == "ema" and has_average else "params"
    names = {p.removeprefix(f"{part}/") for p in saved if p.startswith(f"{part}/")}
    matching = [form for form in forms if tree.flatten(form.goal).keys() == names]
    form = matching[0] if matching else forms[0]
    restored = checkpoint.restore_weights(manager, form.goal, step=step, part=part)
    params = jax.tree.map(lambda x: x.copy(), restored[0])  # owned: it is donated
  if form is not forms[0]:
    at = jax.tree.map(lambda x: x.sharding, forms[0].goal)
    params = jax.jit(form.convert, out_shardings=at)(params)
  return Loaded(params, step, "ema" if part == "ema" else "raw")
