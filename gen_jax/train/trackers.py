"""Trackers of experiments as writers: what `train.writers` names.

    train.writers=wandb, or ("wandb", "mlflow"), or what `gen_jax.register` knows

Each function here imports its package, and returns what makes a writer of a `Run`.
Where a tracker keeps things, and whether it is online, is said by its own variables:

    wandb    WANDB_MODE, WANDB_PROJECT, ...; files in WORKDIR/wandb, or WANDB_DIR
    trackio  TRACKIO_DIR, TRACKIO_SPACE_ID, ...; a database of this user
    mlflow   MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME; a database in WORKDIR/mlflow

Several runs of one process may be open at a time.
"""

import functools
import html
import os
import pathlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gen_jax import errors
from gen_jax.system import files, progress
from gen_jax.train import writers
from gen_jax.types import InputError, one_line

_PROJECT = "gen_jax"
_ID = "gen_jax.id"  # the tag by which a run is found again in MLflow


class Run(NamedTuple):
  """What a tracker is told of a run.

  Attributes:
    id: eight hexadecimal digits, the same after a restart.
    name: of its workdir.
    workdir: where a tracker may write.
    config: every value of it.
    params: the same, {dotted key: value}.
    draw: uint8 [rows, columns, H, W, C] -> one image, uint8 [height, width, 3].
  """

  id: str
  name: str
  workdir: pathlib.Path
  config: Mapping[str, Any]
  params: Mapping[str, Any]
  draw: Callable[[np.ndarray], np.ndarray]


Open = Callable[[Run], writers.Writer]


class Once:
  """A tracker that gets every value once, although a run that resumes has some again.

  WORKDIR/writers/NAME.json keeps the run's id and what came last. A tracker that fails
  while a run trains is left out from then on, with a line: it stops no run. What it had
  not sent when a process was killed is in metrics.jsonl alone.

  Raises:
    InputError: it cannot be opened.
  """

  def __init__(self, name: str, make: Open, run: Run):
    path = run.workdir / "writers" / f"{name}.json"
    self._name, self._path = name, path
    self._writer: writers.Writer | None = None
    last: dict[str, Any] = {"id": secrets.token_hex(4), "step": -1, "names": []}
    if path.exists():
      last |= files.read_json(path)
    path.parent.mkdir(exist_ok=True)
    self._last = last
    files.write_json(path, last)
    try:
      self._writer = make(run._replace(id=last["id"]))
    except InputError:
      raise
    except Exception as error:  # of any package
      raise InputError(
        f"train.writers: {name} cannot be opened: {one_line(error)}; mend that, or"
        " leave it out"
      ) from error

  def write(self, step: int, values: Mapping[str, writers.Value]) -> None:
    """Sends what is new."""
    last = self._last
    if step < last["step"] or self._writer is None:
      return
    there = last["names"] if step == last["step"] else []
    new = {name: value for name, value in values.items() if name not in there}
    if not new or not self._tried(self._writer.write, step, new):
      return
    self._last = {**last, "step": step, "names": [*there, *new]}
    self._tried(files.write_json, self._path, self._last)

  def close(self) -> None:
    """Waits until all is sent."""
    if self._writer is not None:
      self._tried(self._writer.close)
      self._writer = None

  def _tried(self, act: Callable[..., None], *args: Any) -> bool:
    try:
      act(*args)
    except Exception as error:  # of any package
      progress.warn(
        f"train.writers: {self._name} failed and is left out until the next start;"
        f" training goes on: {one_line(error)}"
      )
      self._writer = None
      return False
    return True


def _text(values: Mapping[str, writers.Value]) -> Iterator[tuple[str, str]]:
  return ((n, v) for n, v in values.items() if isinstance(v, str))


def _images(values: Mapping[str, writers.Value]) -> Iterator[tuple[str, np.ndarray]]:
  return ((n, v) for n, v in values.items() if isinstance(v, np.ndarray))


def wandb() -> Open:
  """Weights & Biases."""
  with errors.extra("wandb"):
    import wandb as package
  return functools.partial(_Wandb, package)


class _Rows:
  """A tracker that takes a row of numbers, images and texts for each step.

  Its classes set `_package`, `_draw` and `_run`, and say what a text becomes.
  """

  _package: Any
  _draw: Callable[[np.ndarray], np.ndarray]
  _run: Any
  _shown: Callable[[str], Any]

  def write(self, step: int, values: Mapping[str, writers.Value]) -> None:
    row: dict[str, Any] = {**writers.numbers(values)}
    row |= {n: self._package.Image(self._draw(v)) for n, v in _images(values)}
    row |= {n: self._shown(text) for n, text in _text(values)}
    self._run.log(row, step=step)

  def close(self) -> None:
    self._run.finish()


class _Wandb(_Rows):
  def __init__(self, package: Any, run: Run):
    self._package, self._draw = package, run.draw
    self._run = package.init(
      id=run.id,
      resume="allow",
      name=run.name,
      project=os.environ.get("WANDB_PROJECT", _PROJECT),
      dir=os.environ.get("WANDB_DIR", str(run.workdir)),
      config=dict(run.config),
      reinit="create_new",
      settings=package.Settings(console="off"),
    )

  def _shown(self, text: str) -> Any:
    return self._package.Html(f"<pre>{html.escape(text)}</pre>")


def trackio() -> Open:
  """Trackio of Hugging Face."""
  with errors.extra("trackio"):
    import trackio as package
  return functools.partial(_Trackio, package)


class _Trackio(_Rows):
  def __init__(self, package: Any, run: Run):
    self._package, self._draw = package, run.draw
    self._run = package.init(
      os.environ.get("TRACKIO_PROJECT", _PROJECT),
      name=f"{run.name}-{run.id}",
      config=dict(run.config),
      resume="allow",
      embed=False,
      auto_log_gpu=False,
      auto_log_cpu=False,
    )

  def _shown(self, text: str) -> Any:
    return self._package.Markdown(writers.as_code(text))


def mlflow() -> Open:
  """MLflow."""
  with errors.extra("mlflow"):
    import mlflow as package
  return functools.partial(_MLflow, package)


class _MLflow:
  def __init__(self, package: Any, run: Run):
    self._package, self._draw = package, run.draw
    where, artifacts = None, None
    if not package.is_tracking_uri_set():
      folder = (run.workdir / "mlflow").absolute()
      folder.mkdir(exist_ok=True)
      where = f"sqlite:///{folder / 'mlflow.db'}"
      artifacts = (folder / "artifacts").as_uri()
    with errors.extra("mlflow"):  # databases need more packages
      self._client = client = package.MlflowClient(where)
      name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
      found = client.get_experiment_by_name(name)
    if found is None:
      home = client.create_experiment(name, artifact_location=artifacts)
    else:
      home = found.experiment_id
    before = client.search_runs([home], f"tags.`{_ID}` = '{run.id}'")
    if before:
      self._id = before[0].info.run_id
      client.update_run(self._id, status="RUNNING")
    else:
      self._id = client.create_run(
        home, run_name=run.name, tags={_ID: run.id}
      ).info.run_id
      self._log_params(run.params)
    client.log_dict(self._id, dict(run.config), "config.json")

  def _log_params(self, params: Mapping[str, Any]) -> None:
    entities = self._package.entities
    made = [entities.Param(n, str(v)[:6000]) for n, v in params.items()]
    for some in _groups(made, 100):  # as many as a request may have
      self._client.log_batch(self._id, params=some)

  def write(self, step: int, values: Mapping[str, writers.Value]) -> None:
    now, metric = int(time.time() * 1000), self._package.entities.Metric
    rows = [metric(n, v, now, step) for n, v in writers.numbers(values).items()]
    self._client.log_batch(self._id, metrics=rows)
    for name, images in _images(values):
      how = {"key": name, "step": step, "synchronous": True}
      self._client.log_image(self._id, self._draw(images), **how)
    for name, text in _text(values):
      self._client.log_text(self._id, text, f"{name}/{step:08}.txt")

  def close(self) -> None:
    self._client.set_terminated(self._id)


def _groups(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
  return (items[i : i + size] for i in range(0, len(items), size))
