"""wandb, trackio and MLflow, offline: what they hold is read back by other means."""

import json
import sqlite3
import struct
import sys

import numpy as np
import pytest

from gen_jax.inference import sheets
from gen_jax.train import trackers
from gen_jax.types import InputError

SHEET = np.arange(2 * 3 * 8 * 8, dtype=np.uint8).reshape(2, 3, 8, 8, 1)
CONFIG = {"seed": 7, "optimizer": {"name": "adamw", "weight_decay": 0.25}}
PARAMS = {"seed": 7, "optimizer.name": "adamw", "optimizer.weight_decay": 0.25}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
  monkeypatch.setenv("WANDB_MODE", "offline")
  for name in ("WANDB_DIR", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID"):
    monkeypatch.delenv(name, raising=False)


def run(workdir):
  workdir.mkdir(exist_ok=True)
  draw = sheets.in_colour
  return trackers.Run("", workdir.name, workdir, CONFIG, PARAMS, draw)


def start_twice(name, workdir):
  """A run that ends after step 6, and resumes at step 2: rows come again."""
  make = getattr(trackers, name)()
  for number, steps in enumerate(((2, 4, 6), (4, 6, 8))):
    sink = trackers.Once(name, make, run(workdir))
    for step in steps:
      sink.write(step, {"loss": step + number / 10})
      sink.write(step, {"validation/loss": float("nan") if step == 4 else 2.0 * step})
    sink.write(8 * number + 6 - 6 * number, {"samples": SHEET, "answers": "<b>\n```"})
    sink.close()


WANT = {2: 2.0, 4: 4.0, 6: 6.0, 8: 8.1}


def records(path):
  """Records of a .wandb file: a log of LevelDB's form, each a protocol buffer."""
  from wandb.proto import wandb_internal_pb2

  content, found, parts = path.read_bytes(), [], b""
  at = 7  # the file's own head
  while at + 7 <= len(content):
    room = 32768 - at % 32768
    if room < 7:
      at += room
      continue
    _, size, kind = struct.unpack("<IHB", content[at : at + 7])
    parts += content[at + 7 : at + 7 + size]
    at += 7 + size
    if kind in (1, 4):  # whole, or the last part
      found.append(wandb_internal_pb2.Record.FromString(parts))
      parts = b""
  return found


def test_wandb(tmp_path):
  pytest.importorskip("wandb")
  start_twice("wandb", tmp_path / "run")
  files = sorted((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
  assert len({file.name for file in files}) == 1  # of one id
  found, config, media = {}, {}, []
  for file in files:
    for record in records(file):
      for item in record.run.config.update:
        config[item.key] = json.loads(item.value_json)
      row = {
        "/".join(item.nested_key) or item.key: json.loads(item.value_json)
        for item in record.history.item
      }
      if kind := row.get("samples/_type"):
        media.append((row["_step"], kind))
      for name in row.keys() & {"loss", "validation/loss"}:
        found.setdefault(name, []).append((row["_step"], row[name]))
  assert found["loss"] == [*WANT.items()]
  losses = found["validation/loss"]
  assert [step for step, _ in losses] == [2, 4, 6, 8]
  assert np.isnan(float(losses[1][1])) and losses[2][1] == 12.0
  assert {key: config[key] for key in CONFIG} == CONFIG
  assert media == [(6, "image-file"), (8, "image-file")]
  text = next((tmp_path / "run/wandb").rglob("answers*.html")).read_text()
  assert "&lt;b&gt;\n```" in text


def test_trackio(tmp_path, monkeypatch):
  pytest.importorskip("trackio")
  import trackio.sqlite_storage

  for module in (trackio, trackio.utils, trackio.sqlite_storage):
    monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "all", raising=False)
  start_twice("trackio", tmp_path / "run")
  with sqlite3.connect(tmp_path / "all/gen_jax.db") as base:
    rows = base.execute("select run_name, step, metrics from metrics").fetchall()
    ((config,),) = base.execute("select config from configs").fetchall()
  found = [(step, json.loads(metrics)) for _, step, metrics in rows]
  assert [(step, row["loss"]) for step, row in found if "loss" in row] == [
    *WANT.items()
  ]
  seen = [step for step, row in found if "validation/loss" in row]
  assert seen == [2, 4, 6, 8]
  types = {row["samples"]["_type"] for _, row in found if "samples" in row}
  assert types == {"trackio.image"}
  assert any("```\n````" in row["answers"]["_value"] for _, row in found[-1:])
  assert CONFIG.items() <= json.loads(config).items()
  ((name,),) = {(name,) for name, *_ in rows}
  assert name.startswith("run-")


@pytest.mark.long  # its database is made in seconds
def test_mlflow(tmp_path):
  mlflow = pytest.importorskip("mlflow")
  start_twice("mlflow", tmp_path / "run")
  client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'run/mlflow/mlflow.db'}")
  home = client.get_experiment_by_name("gen_jax").experiment_id
  (only,) = client.search_runs([home])
  name = only.info.run_id
  history = client.get_metric_history(name, "loss")
  assert sorted((m.step, m.value) for m in history) == [*WANT.items()]
  history = client.get_metric_history(name, "validation/loss")
  assert sorted(m.step for m in history) == [2, 4, 6, 8]
  assert only.data.params == {key: str(value) for key, value in PARAMS.items()}
  assert only.info.status == "FINISHED" and only.info.run_name == "run"
  folder = tmp_path / "run/mlflow/artifacts" / name / "artifacts"
  assert json.loads((folder / "config.json").read_text()) == CONFIG
  assert (folder / "answers/00000008.txt").read_text() == "<b>\n```"
  assert len([*(folder / "images").glob("samples+step+6+*.png")]) == 1
  assert len([*(folder / "images").glob("samples+step+8+*.png")]) == 1


class Kept:
  """A tracker that keeps what it gets."""

  def __init__(self, run):
    self.run, self.rows = run, []

  def write(self, step, values):
    if step == 13:
      raise OSError("the net\nis away")
    self.rows.append((step, sorted(values)))

  def close(self):
    self.rows.append("closed")


def opened(made, workdir, make=Kept):
  sink = trackers.Once(
    "kept", lambda run: made.append(make(run)) or made[-1], run(workdir)
  )
  return sink


def test_a_value_is_sent_once_and_a_run_keeps_its_id(tmp_path):
  """Also killed between two rows of one step, and before anything was sent."""
  made = []
  opened(made, tmp_path)
  sink = opened(made, tmp_path)
  sink.write(0, {"a": 1.0, "b": 1.0})
  sink.write(2, {"a": 1.0})
  sink = opened(made, tmp_path)  # begins again at 0
  sink.write(0, {"a": 1.0, "b": 1.0, "c": 1.0})
  sink.write(2, {"a": 1.0})
  sink.write(2, {"b": 1.0, "a": 2.0})
  sink.write(4, {"a": 1.0})
  sink.close()
  assert len({tracker.run.id for tracker in made}) == 1 and len(made[0].run.id) == 8
  rows = [row for tracker in made for row in tracker.rows]
  assert rows == [(0, ["a", "b"]), (2, ["a"]), (2, ["b"]), (4, ["a"]), "closed"]
  other = []
  opened(other, tmp_path / "other")
  assert other[0].run.id != made[0].run.id


def test_a_tracker_that_fails_stops_no_run(tmp_path, capsys):
  made = []
  sink = opened(made, tmp_path)
  for step in (12, 13, 14):
    sink.write(step, {"a": 1.0})
  sink.close()
  assert made[0].rows == [(12, ["a"])]
  (line,) = capsys.readouterr().err.splitlines()
  assert "kept failed" in line and "training goes on: the net is away" in line
  sink = opened(made, tmp_path)  # the next start sends the row again
  sink.write(13 + 1, {"a": 1.0})
  assert made[1].rows == [(14, ["a"])]


def test_one_that_cannot_be_opened_is_refused(tmp_path):
  def make(run):
    raise RuntimeError("no API key\nconfigured")

  with pytest.raises(InputError, match="kept cannot be opened: no API key configured;"):
    trackers.Once("kept", make, run(tmp_path))


def test_train_refuses_before_anything_is_written(tmp_path, monkeypatch):
  from gen_jax.runs import run as runs

  monkeypatch.setitem(sys.modules, "wandb", None)
  home, words = tmp_path / "run", {"train.writers": "wandb"}
  made = runs.new("lm/pydoc:smoke", home, words)
  with pytest.raises(InputError, match=r"pip install 'gen_jax\[wandb\]'"):
    made.train()
  assert not home.exists() or not [*home.iterdir()]
  with pytest.raises(InputError, match=r"unknown writer.*did you mean 'wandb'"):
    runs.new("lm/pydoc:smoke", home, {"train.writers": "wandbb"})
