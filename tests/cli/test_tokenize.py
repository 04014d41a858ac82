"""`gen-jax tokenize`, and training from what it writes."""

import json
import time

import numpy as np
import pytest

from tests.data.tokens import made

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def corpus(tmp_path):
  path = tmp_path / "corpus.jsonl"
  rows = (
    {"text": f"The story of number {i}: {'it grew, ' * (i % 5)}."} for i in range(300)
  )
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


@pytest.fixture
def tokenize(corpus, tmp_path):
  to = tmp_path / "store"
  return (
    "tokenize",
    "--source",
    corpus,
    "--tokenizer",
    "bytes",
    "--to",
    to,
    "--workers=1",
  )


def train(store, *more):
  return (
    *("train", "--config", "configs/lm/pydoc.py:smoke"),
    *("--config.data.source=tokens", f"--config.data.source.path={store}"),
    *(
      "--config.data.tokenizer=file",
      f"--config.data.tokenizer.path={store}/tokenizer",
    ),
    "--config.data.name=packed_text",
    "--config.optimizer.learning_rate=constant",
    "--config.optimizer.learning_rate.peak=1e-3",
    *more,
  )


def test_a_store_is_trained_from_and_resumed(call, train_in_parts, tokenize, tmp_path):
  told = call(*tokenize, "--held_out=0.1", "--json")
  assert told.code == 0, told.err
  result = json.loads(told.out.splitlines()[-1])
  assert result["num_documents"]["train"] > 200
  store = tmp_path / "store"
  train_in_parts(lambda *words: train(store, *words))
  shown = call("inspect", "--workdir", tmp_path / "whole", "--step", 1)
  assert shown.code == 0 and "number" in shown.out


def test_another_command_does_not_write_over_a_store(call, refuse, tokenize):
  assert call(*tokenize).code == 0
  assert call(*tokenize).code == 0  # it is there
  refuse(*tokenize, "--held_out=0.3", says=["another held_out", "take another folder"])


def test_every_file_is_read_once_and_the_store_itself_never(call, refuse, tmp_path):
  home = tmp_path / "corpus"
  home.mkdir()
  (home / "a.jsonl").write_text('{"text": "a"}\n')
  (home / "b.jsonl").symlink_to("a.jsonl")
  (home / "again").symlink_to(home)
  words = ("tokenize", "--tokenizer=bytes", "--workers=1", "--held_out=0", "--json")
  words += ("--source", home, "--source", home / "again/b.jsonl")
  for _ in range(2):  # the second time the store is there
    told = call(*words, "--to", home / "store")
    assert told.code == 0, told.err
    assert json.loads(told.out.splitlines()[-1])["num_documents"]["train"] == 1
  refuse(*words, "--to", home, says=["holds all of --source", "another folder"])


@pytest.mark.parametrize(
  ("flag", "says"),
  [
    ("--held_out=1.5", ["--held_out=1.5", "in [0, 1)"]),
    ("--shard_mib=0", ["--shard_mib=0", "at least 1"]),
    ("--workers=100000", ["--workers 100000", "four for each core"]),
    ("--drop=some", ["--drop", "exact"]),
    ("--field=body", ["byte 0", "'body'", "There are: text"]),
  ],
)
def test_flags_that_cannot_be(refuse, tokenize, flag, says):
  refuse(*tokenize, flag, says=says)


@pytest.mark.parametrize(
  ("words", "says"),
  [
    (["--on=ray"], ["--on ray needs --address HOST:PORT"]),
    (["--on=slurm"], ["--on", "local", "ray"]),
    (["--address=a:1"], ["--address needs --on ray"]),
    (["--option=num_cpus=2"], ["--option needs --on ray"]),
    (["--on=ray", "--address=127.0.0.1:1"], ["no Ray answers at", "ray start --head"]),
  ],
)
def test_clusters_that_cannot_be(refuse, tokenize, words, says):
  if "127.0.0.1" in words[-1]:
    pytest.importorskip("ray")
  began = time.monotonic()
  refuse(*tokenize, *words, says=says)
  assert time.monotonic() - began < 10  # Ray itself would wait for minutes


def test_stores_that_do_not_fit_are_refused(refuse, tmp_path):
  path = made.of_shards(tmp_path / "s", {"train": [[np.arange(200)]]})
  short = made.of_shards(tmp_path / "short", {"train": [[np.arange(10)]]})
  given = train(short, "--workdir", tmp_path / "a")
  refuse(*given, says=["10 tokens, fewer than", "data.length=16"])
  other = "--config.data.tokenizer={'name': 'bpe', 'vocab_size': 300}"
  refuse(*train(path, other, "--workdir", tmp_path / "b"), says=["another tokenizer"])
  for weights in ("(1, -1)", "(0, 0)"):
    block = f"{{'name': 'mixture', 'paths': ('{path}',) * 2, 'weights': {weights}}}"
    block = block.replace(f"('{path}',) * 2", f"('{path}', '{path}')")
    mixed = train(path, f"--config.data.source={block}", "--workdir", tmp_path / "m")
    mixed = tuple(word for word in mixed if "source.path" not in str(word))
    refuse(*mixed, says=["weights", "0"])
  shard = path / "train-00000-00000.bin"
  shard.write_bytes(shard.read_bytes()[:-2])
  refuse(*train(path, "--workdir", tmp_path / "c"), says=[shard.name, "cut off"])
