"""Tasks that users register: trained, evaluated and swept; they draw nothing."""

import pathlib

from gen_jax.data import kept
from gen_jax.families import base
from gen_jax.types import InputError


def _check(task: base.Task, data: base.Data, sampling) -> None:
  del sampling
  if missing := [name for name in ("reads", "init", "loss") if not hasattr(task, name)]:
    raise InputError(
      f"{type(task).__name__} is no task, it has no {' and no '.join(missing)}:"
      " `gen_jax.tasks.base.Task` says what a task has"
    )
  base.check_prompts(task, data, "the task", "the task")


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
