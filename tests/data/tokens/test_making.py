"""Stores that are made: the same bytes by any number of workers, killed or not."""

import functools
import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gen_jax import types
from gen_jax.data import cache, tokenizers
from gen_jax.data.tokens import (
  documents,
  duplicates,
  folder,
  making,
  store,
  tokenising,
  worker,
)
from tests.data.tokens import processes

TEXTS = [f"Document {i} of the corpus. " * (i % 9 + 1) for i in range(400)]
COPIES = [TEXTS[3].upper(), TEXTS[200], TEXTS[3]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """Documents in three files, the last ones copies of earlier ones."""
  home = tmp_path_factory.mktemp("corpus")
  for i, texts in enumerate((TEXTS[:200], TEXTS[200:], COPIES)):
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    if i == 1:
      (home / "1.jsonl.gz").write_bytes(gzip.compress(content))
    else:
      (home / f"{i}.jsonl").write_bytes(content)
  return home


def job(corpus, **changes):
  paths = tuple(documents.listed(str(corpus), None, "train"))
  tokenizer = tokenizers.plain_bytes()
  options = {"shard_bytes": 4000, "held_out": 0.1, **changes}
  return tokenising.Job(paths, tokenizer, **options)


def content(home):
  """{name: bytes} of a folder."""
  paths = (path for path in home.rglob("*") if path.is_file())
  return {str(path.relative_to(home)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
  """A store of one worker."""
  home = tmp_path_factory.mktemp("made") / "store"
  making.make(home, job(corpus), 1)
  return home


def texts(home, split):
  stream = store.open_store(home, None).stream(split, 0.0)
  return list(store.Texts(lambda: [(stream, tokenizers.plain_bytes())]))


def test_every_document_is_there_in_its_split(made):
  everything = TEXTS + COPIES
  is_out = [duplicates.fraction(text) < 0.1 for text in everything]
  for split, wanted in (("train", False), ("validation", True)):
    want = [t for t, out in zip(everything, is_out, strict=True) if out == wanted]
    assert texts(made, split) == want and want
  assert not set(texts(made, "train")) & set(texts(made, "validation"))


def test_tokens_are_those_of_the_small_path(made):
  """As `cache.tokenize` of the same documents in memory."""
  stream = store.open_store(made, None).stream("train", 0.0)
  want = cache.tokenize(texts(made, "train"), tokenizers.plain_bytes())
  window = stream.window(0, len(stream))
  np.testing.assert_array_equal(window.ids, want.ids)
  np.testing.assert_array_equal(window.starts, want.starts)


def test_the_manifest_counts_what_is_there(made):
  manifest = store.read_manifest(made)
  for split in store.SPLITS:
    assert manifest["num_documents"][split] == len(texts(made, split))
    stream = store.open_store(made, None).stream(split, 0.0)
    assert manifest["num_tokens"][split] == len(stream)
  names = {path.split(".")[0] for path in content(made) if "-" in path}
  assert names == {x["name"] for s in manifest["splits"].values() for x in s}
  assert [name for name, _ in manifest["source"]] == [
    "0.jsonl",
    "1.jsonl.gz",
    "2.jsonl",
  ]


def test_two_workers_make_the_same_bytes_and_the_same_command_finds_them(
  corpus, made, tmp_path
):
  making.make(tmp_path / "store", job(corpus), 2)
  assert content(tmp_path / "store") == content(made)
  again = making.make(tmp_path / "store", job(corpus), 2)
  assert again == store.read_manifest(made)


def test_progress_is_said_for_all_workers(corpus, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(making, "_EVERY_SECS", 0.0)
  manifest = making.make(tmp_path / "store", job(corpus), 2)
  last = capsys.readouterr().err.splitlines()[-1]
  num = sum(manifest["num_tokens"].values())
  assert last.startswith(f"tokenising: {num:,} tokens, ")
  assert f" a second, {len(TEXTS + COPIES)} documents" in last


killed = functools.partial(processes.killed, "tests.data.tokens.test_making", "tokens")


def test_killed_at_any_moment_it_goes_on_and_makes_the_same_bytes(
  corpus, made, tmp_path
):
  home = tmp_path / "store"
  home.mkdir()
  assert not killed(home, corpus, after=2)
  with pytest.raises(types.InputError, match="not finished"):
    store.open_store(home, None)
  done = {path.name: path.stat().st_mtime_ns for path in home.glob("piece-*.json")}
  for path in (home / "train-00000-00000.bin.partial", home / "piece-9.json.partial"):
    path.write_bytes(b"cut off")
  making.make(home, job(corpus), 1)
  assert content(home) == content(made)
  assert len(done) >= 2


def test_a_piece_that_is_done_or_claimed_is_not_made_again(corpus, made, tmp_path):
  """A claim of a killed command counts no more in the next."""
  home, given = tmp_path / "store", job(corpus)
  place = folder.Folder(home)
  with making._held(place, given):
    pass
  assert place.claim(folder.name(0, 0), "tokens-2", "0")
  worker.run(home, "tokens", 2, 1)
  assert folder.name(0, 0) not in place.done("tokens")
  before = {p: p.stat().st_mtime_ns for p in home.glob("piece-*.json")}
  assert before
  making.make(home, given, 1)
  assert content(home) == content(made)


def test_a_disk_that_refuses_is_said_and_the_same_command_goes_on(
  corpus, made, tmp_path
):
  home, given = tmp_path / "store", job(corpus)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))  # a quota
  try:
    with pytest.raises(types.InputError, match=f"--to {home}: File too large"):
      making.make(home, given, 2)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  making.make(home, given, 2)
  assert content(home) == content(made)


def test_exact_copies_are_dropped(corpus, tmp_path):
  given = job(corpus, held_out=0.0, duplicates="exact")
  making.make(tmp_path / "store", given, 2)
  assert texts(tmp_path / "store", "train") == TEXTS
  assert not list((tmp_path / "store").glob("copies*"))


def test_near_copies_are_dropped(tmp_path):
  pytest.importorskip("datasketch")
  words = [f"word{i * 37 % 113}" for i in range(200)]
  near = " ".join([*words[:100], "other", *words[101:]])
  for i, text in enumerate((" ".join(words), "something else", near)):
    (tmp_path / f"{i}.txt").write_text(text)
  given = job(tmp_path / "?.txt", held_out=0.0, duplicates="near")
  making.make(tmp_path / "store", given, 1)
  found = texts(tmp_path / "store", "train")
  assert found == [" ".join(words), "something else"]


def test_another_store_is_not_written_over(corpus, made, tmp_path):
  for changes, name in (
    ({"held_out": 0.2}, "held_out"),
    ({"field": "body"}, "field"),
    ({"shard_bytes": 5000}, "shard_bytes"),
  ):
    with pytest.raises(types.InputError, match=f"store of another {name}"):
      making.make(made, job(corpus, **changes), 1)
  home = tmp_path / "store"
  with making._held(folder.Folder(home), job(corpus)):
    with pytest.raises(types.InputError, match="unfinished store of another held"):
      making.make(home, job(corpus, held_out=0.2), 1)
  (tmp_path / "own").mkdir()
  (tmp_path / "own/file").write_text("")
  with pytest.raises(types.InputError, match="holds something else than a store"):
    making.make(tmp_path / "own", job(corpus), 1)
  with pytest.raises(types.InputError, match="holds something else than a store"):
    making.make(tmp_path / "own/file", job(corpus), 1)


def test_a_tokenizer_that_was_there_before_is_not_ours_to_remove(tmp_path):
  """What fails is taken away again: only in a folder that the command has begun."""
  (tmp_path / "a.jsonl").write_text('{"text": 1}\n')
  tokenizers.plain_bytes().save(tmp_path / "own" / store.TOKENIZER)
  before = content(tmp_path)
  with pytest.raises(types.InputError, match="holds something else than a store"):
    making.make(tmp_path / "own", job(tmp_path / "a.jsonl"), 1)
  assert content(tmp_path) == before


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
  path, run = tmp_path / "a.jsonl", making._run
  path.write_text('{"text": "a"}\n')

  def changing(*given):
    run(*given)
    path.write_text('{"text": "a"}\n{"text": "b"}\n')

  monkeypatch.setattr(making, "_run", changing)
  with pytest.raises(types.InputError, match="changed while it was read"):
    making.make(tmp_path / "store", job(path, held_out=0.0), 1)
  assert not (tmp_path / "store" / store.MANIFEST).exists()


def test_what_a_worker_stumbles_over_is_said(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": 1}\n')
  with pytest.raises(types.InputError, match="byte 14: 1 is not text"):
    making.make(tmp_path / "store", job(tmp_path / "a.jsonl"), 1)
  assert not (tmp_path / "store").exists()
  (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
  with pytest.raises(types.InputError, match="no text in"):
    making.make(tmp_path / "store", job(tmp_path / "a.jsonl", held_out=1 - 1e-9), 1)


def test_of_two_that_ask_for_a_piece_one_has_it_even_when_it_is_started_again(tmp_path):
  place = folder.Folder(tmp_path)
  assert place.claim("00000-00001", "tokens-2", "1")
  assert not place.claim("00000-00001", "tokens-2", "0")
  assert place.claim("00000-00001", "tokens-2", "1")  # a new process, the same worker
  assert place.claim("00000-00001", "tokens-3", "0")  # of another command
  assert place.claim("00000-00001", "keys-2", "0")
  place.forget_workers()
  assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_whatever_is_killed_on_a_cluster_the_bytes_are_the_same(tmp_path, monkeypatch):
  """A worker, the command and a node of two, by SIGKILL while pieces are made."""
  pytest.importorskip("ray")
  from ray import cluster_utils

  from tests.sweeps import test_remote

  monkeypatch.setenv("RAY_worker_niceness", "0")  # or they wait for all others
  source, home = tmp_path / "long.jsonl", tmp_path / "store"
  lines = (json.dumps({"text": f"{i} " + TEXTS[i % 400] * 40}) for i in range(16_000))
  source.write_text("".join(f"{line}\n" for line in lines))
  place = folder.Folder(home)
  words = [sys.executable, "-m", "gen_jax.cli.main", "tokenize", "--source", source]
  words += ["--tokenizer=bytes", "--shard_mib=1", "--drop=exact", "--to"]
  subprocess.run([*words, tmp_path / "alone", "--workers=1"], check=True)

  def until(phase, num):
    deadline = time.monotonic() + 120
    while len(place.done(phase)) < num:
      assert command.poll() is None and time.monotonic() < deadline
      time.sleep(0.02)

  cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
  try:
    node = cluster.add_node(num_cpus=1)
    words += [home, "--on=ray", f"--address={cluster.address}"]  # as many as fit: two
    command = subprocess.Popen(words)
    for phase in ("keys", "tokens"):
      until(phase, 5)
      for worker in test_remote.wait(lambda: test_remote.busy(cluster.head_node)):
        os.kill(worker, signal.SIGKILL)
    until("tokens", 15)
    command.kill()
    command.wait()
    before = len(place.done("tokens"))
    command = subprocess.Popen(words)
    until("tokens", before + 5)
    cluster.remove_node(node, allow_graceful=False)
    assert command.wait(timeout=300) == 0
  finally:
    command.kill()
    cluster.shutdown()
  assert before < len(list(home.glob("train-*.bin")))
  assert content(home) == content(tmp_path / "alone")
