"""Trained, adapted, exported, imported, sampled and scored: through the commands."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import gen_jax
from gen_jax import tree
from gen_jax.models import transformer
from gen_jax.train import checkpoint
from tests.cli import conftest

call = conftest.call
SHAPE = {"num_layers": "1", "width": "8", "num_heads": "2", "mlp_width": "16"}


def opened(directory):
  run = gen_jax.open(directory)
  return run.weights("latest"), run.experiment.tokenizer


def digest(found):
  """Of the weights, however their layers are stored."""
  return tree.sha256(jax.device_get(transformer.unstacked(found.params)))


@pytest.mark.long
def test_adapters_leave_by_export_and_come_back_by_import(tmp_path, call):
  changes = {f"task.model.{key}": value for key, value in SHAPE.items()}
  base = tmp_path / "base"
  experiment = conftest._claim(base, "configs/lm/llama.py", *changes.items())
  abstract = experiment.abstract_state(experiment.optimizer(1)[0])
  draw = np.random.default_rng(0)
  state = jax.tree.map(
    lambda x: jax.device_put(draw.normal(0, 0.1, x.shape).astype(x.dtype), x.sharding),
    abstract,
  )
  with checkpoint.open_manager(base) as manager:
    state = dataclasses.replace(state, step=state.step * 0)
    checkpoint.save(manager, 0, state, checkpoint.Progress(1.0, 0), 1.0)
  train = call(
    *("train", "--config", "configs/lm/llama.py:smoke"),
    *("--workdir", tmp_path / "adapted", f"--config.init_from.workdir={base}"),
    *("--config.adapter.name=lora", "--config.optimizer.learning_rate.peak=1.0"),
    *(f"--config.{key}={value}" for key, value in changes.items()),
  )
  assert train.code == 0, train
  assert (
    call("export", "--workdir", tmp_path / "adapted", "--to", tmp_path / "hf").code == 0
  )
  back = call("import", "--from", tmp_path / "hf", "--workdir", tmp_path / "back")
  assert back.code == 0, back
  merged, a = opened(tmp_path / "adapted")
  returned, b = opened(tmp_path / "back")
  assert digest(merged) == digest(returned) != digest(opened(base)[0])
  assert (a.fingerprint, a.stops, a.bos) == (b.fingerprint, b.stops, b.bos)

  (tmp_path / "text.txt").write_text("The import statement binds names.\n" * 9)
  scores, texts = [], []
  for name in ("adapted", "back"):
    done = call(
      *("evaluate", "--workdir", tmp_path / name, "--checkpoint", "latest"),
      *("--text", tmp_path / "text.txt", "--json"),
    )
    assert done.code == 0, done
    scores.append(json.loads(done.out.splitlines()[-1])["text/perplexity"])
    done = call(
      *("sample", "--workdir", tmp_path / name, "--checkpoint", "latest"),
      *("--prompt", "The import", "--json", "--temperature", "0", "--max_tokens", "9"),
    )
    assert done.code == 0, done
    texts.append(json.loads(done.out.splitlines()[-1])["samples"][0]["text"])
  assert scores[0] == scores[1] and texts[0] == texts[1]
