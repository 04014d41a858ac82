"""What only an extra installs: without it one line says which one."""

import base64
import importlib
import pathlib
import sys

import pytest

from gen_jax.convert import hub
from gen_jax.data import encodings, ranks, tfds, token_settings
from gen_jax.data.digits import scorer, source
from gen_jax.data.tokens import duplicates, foreign
from gen_jax.evaluation import metrics
from gen_jax.sweeps import remote, search, statistics
from gen_jax.train import curves, trackers
from gen_jax.types import InputError

SPACE = {"a": search.uniform(0, 1)}
TRIED = [({"a": i / 10}, 0.0) for i in range(10)]


@pytest.mark.parametrize(
  "package, extra, use",
  [
    ("tensorflow_datasets", "data", lambda: tfds.builder("mnist", None)),
    ("sklearn", "data", lambda: source.Digits().examples("train")),
    ("sklearn", "data", lambda: scorer.train(source.Digits(), 8)),
    ("sacrebleu", "metrics", lambda: metrics.answers(["a"], ["b"])),
    ("plotly", "report", lambda: curves.figure([], {"loss": {"loss": "loss"}})),
    ("plotly", "report", curves.script),
    ("datasketch", "corpora", lambda: duplicates.near("text")),
    ("datasets", "corpora", lambda: foreign._hub("hf:name||train")),
    ("zstandard", "corpora", lambda: foreign.Zstandard(None, "a.zst")),
    ("scipy", "sweeps", lambda: statistics.over_seeds([1.0, 2.0])),
    ("optuna", "sweeps", lambda: search.propose(SPACE, "tpe", 0, TRIED, 1)),
    ("ray", "ray", lambda: remote.Ray("localhost:1", {})),
    ("submitit", "slurm", lambda: remote.Slurm(pathlib.Path("runs"), {})),
    ("huggingface_hub", "hub", lambda: hub.locate("org/name", None)),
    ("wandb", "wandb", trackers.wandb),
    ("trackio", "trackio", trackers.trackio),
    ("mlflow", "mlflow", trackers.mlflow),
  ],
)
def test_missing(monkeypatch, package, extra, use):
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(InputError) as error:
    use()
  install = f"python -m pip install 'gen_jax[{extra}]'"
  assert str(error.value) == f"{package} is not installed: {install}"


@pytest.mark.parametrize(
  "package, extra, module",
  [
    ("starlette", "serve", "gen_jax.serving.server"),
    ("uvicorn", "serve", "gen_jax.serving.server"),
    ("lm_eval", "harness", "gen_jax.serving.harness"),
  ],
)
def test_missing_for_a_module(monkeypatch, package, extra, module):
  for name in [name for name in sys.modules if name.split(".")[0] == package]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, package, None)
  monkeypatch.delitem(sys.modules, module, raising=False)
  with pytest.raises(InputError, match=rf"is not installed.*gen_jax\[{extra}\]"):
    importlib.import_module(module)


BYTES = b"\n".join(b"%s %d" % (base64.b64encode(bytes([i])), i) for i in range(256))


@pytest.mark.parametrize(
  "package, read",
  [
    (
      "sentencepiece",
      lambda: encodings.sentence_piece(b"model", token_settings.Settings()),
    ),
    ("tiktoken", lambda: ranks.read(BYTES, "gpt2")),
  ],
)
def test_missing_for_a_tokenizer(monkeypatch, package, read):
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(InputError, match=rf"{package} is not installed.*gen_jax\[hub\]"):
    read()
