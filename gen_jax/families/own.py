"""Tasks that users register: trained, evaluated and swept; they draw nothing.

What `init` and `loss` give is checked on an abstract batch, before anything is read.
"""

import functools
import inspect
import pathlib
import traceback
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gen_jax import rng, sharding
from gen_jax.data import kept
from gen_jax.families import base
from gen_jax.tasks.base import LossOut
from gen_jax.types import InputError, Mean, PyTree, one_line

_TAKEN = ("loss", "grad_norm", "learning_rate", "step", "time", "crc32", "data_wait")
_SAYS = "`gen_jax.tasks.base.Task` says what a task has"


def _check(task: base.Task, data: base.Data, sampling) -> None:
  del sampling
  if missing := [name for name in ("reads", "init", "loss") if not hasattr(task, name)]:
    raise InputError(
      f"{type(task).__name__} is no task, it has no {' and no '.join(missing)}: {_SAYS}"
    )
  reads = task.reads
  if not isinstance(reads, tuple) or not {*reads} <= {"caption", "label"}:
    shown = f"{type(task).__name__}.reads={reads!r:.80}"
    raise InputError(f"{shown} must be a tuple of 'caption', 'label', both or none")
  base.check_prompts(task, data, "the task", "the task")
  batch = data.giving(reads).abstract_batch()
  key, size = jax.random.key(0), len(next(iter(batch.values())))
  params = _traced(task, "init", key, batch)
  _check_params(f"{type(task).__name__}.init", params)
  keys = jax.eval_shape(lambda: rng.per_example(key, size))
  for train in (True, False):
    out = _traced(task, "loss", sharding.unbox(params), {}, batch, keys, train=train)
    _check_loss(f"{type(task).__name__}.loss", out)


def _traced(task: base.Task, method: str, *args: Any, **how: Any) -> Any:
  """What a method gives; InputError says where it fails."""
  try:
    return jax.eval_shape(functools.partial(getattr(task, method), **how), *args)
  except InputError:
    raise
  except (Exception, SystemExit) as error:  # of any kind
    name, frames = type(task).__name__, traceback.extract_tb(error.__traceback__)
    own = [x for x in frames if x.filename == inspect.getfile(type(task))]
    at = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
    why = f"{type(error).__name__}: {one_line(error):.300}"
    raise InputError(f"{name}.{method} fails{at}: {why}; {_SAYS}") from error


def _check_params(what: str, params: PyTree) -> None:
  leaves = jax.tree_util.tree_leaves_with_path(sharding.unbox(params))
  if not leaves:
    raise InputError(f"{what} must give parameters; it gives none")
  for path, leaf in leaves:
    names = [getattr(part, "key", "") for part in path]
    shown = f"{what}: the parameter {jax.tree_util.keystr(path)}"
    if not all(isinstance(name, str) and "/" not in name for name in names):
      raise InputError(f"{shown} must have names of text without /")
    if not jnp.issubdtype(leaf.dtype, jnp.floating) or not leaf.size:
      kind = f"{leaf.dtype} {list(leaf.shape)}"
      raise InputError(f"{shown} is {kind}; floating-point numbers are needed")


def _check_loss(what: str, out: Any) -> None:
  if not isinstance(out, LossOut) or not isinstance(out.metrics, Mapping):
    raise InputError(
      f"{what} must give a LossOut of a Mean and a dict of Means; {_SAYS}"
    )
  for name, mean in {"loss": out.loss, **out.metrics}.items():
    parts = (mean.total, mean.count) if isinstance(mean, Mean) else (None,)
    if not all(_is_scalar(part) for part in parts):
      raise InputError(
        f"{what}: {name!r} must be a Mean of two floating-point scalars (Mean.of makes"
        f" one); it is {one_line(ValueError(mean)):.160}"
      )
  for name in out.metrics:
    if not isinstance(name, str) or not name.isprintable() or name in _TAKEN:
      raise InputError(
        f"{what}: a metric cannot be named {name!r}: a name is printable text, and none"
        f" of {', '.join(_TAKEN)}"
      )


def _is_scalar(value: Any) -> bool:
  return hasattr(value, "dtype") and (
    value.shape == () and jnp.issubdtype(value.dtype, jnp.floating)
  )


def _class_names(task: base.Task, data: base.Data, workdir: pathlib.Path):
  return kept.class_names_for(data, workdir) if "label" in task.reads else None


def family(name: str) -> base.Family:
  """The family of the registered task `name`, on any data."""
  no = base.refuse(
    f"task {name} is none of gen_jax: its weights are trained and evaluated, and"
    " gen_jax.open(WORKDIR).weights() gives them to Python; no command draws, scores or"
    " exports with them"
  )
  return base.Family(
    name=name,
    kind=f"a model of the task {name}",
    gives="nothing",
    settings={},
    flags={},
    datasets=(object,),
    sampling=object,
    check=_check,
    class_names=_class_names,
    generator=no,
    reference_images=no,
    sample=no,
    generate=no,
    program=no,
    export=no,
    scorer=no,
    adapter_plans=no,
  )
