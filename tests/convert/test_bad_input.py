"""Bad releases: one line, exit code 2, nothing written; nothing is ever unpickled."""

import hashlib
import json
import os
import pathlib
import pickle
import shutil

import huggingface_hub
import numpy as np
import pytest

from gen_jax import safetensors
from gen_jax.data import tokenizers
from gen_jax.train import checkpoint
from tests.cli import conftest

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
call, refuse = conftest.call, conftest.refuse


@pytest.fixture
def folder(tmp_path):
  return shutil.copytree(GOLDEN / "gpt2", tmp_path / "model")


def _truncate(folder):
  file = folder / "model.safetensors"
  os.truncate(file, file.stat().st_size - 4)


def _write(name, content):
  return lambda folder: (folder / name).write_bytes(content)


def _set(**keys):
  def change(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))

  return change


def _tensors(change):
  def rewrite(folder):
    tensors = safetensors.open_folder(folder)
    arrays = {name: np.array(t.view()) for name, t in tensors.items()}
    change(arrays)
    plan = {
      name: safetensors.LazyTensor(a.shape, lambda a=a: a) for name, a in arrays.items()
    }
    safetensors.write_folder(folder, plan, "F32")

  return rewrite


def _nan(arrays):
  arrays["transformer.wpe.weight"][3, 3] = np.nan


def _extra(arrays):
  arrays["transformer.h.0.attn.rope"] = arrays.pop("transformer.ln_f.bias")


def _lose_shard(folder):
  tensors = safetensors.open_folder(folder)
  plan = {n: safetensors.LazyTensor(t.shape, t.view) for n, t in tensors.items()}
  safetensors.write_folder(folder, plan, "F32", max_bytes=9000)
  (folder / "model.safetensors").unlink()
  (folder / "model-00002-of-00004.safetensors").unlink()


def _pickle(folder):
  (folder / "model.safetensors").unlink()
  bomb = folder.parent / "exploded"
  (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(bomb)))


class Bomb:
  """Writes a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def _tokenizer(size):
  def save(folder):
    tokenizers.train_bpe(["some text"] * 9, size).save(folder)

  return save


@pytest.mark.parametrize(
  "damage, says",
  [
    (_truncate, ["model.safetensors is truncated or corrupted", "fetch"]),
    (_write("model.safetensors", b"\x40" + b"\0" * 7 + b"[" * 64), ["bad header"]),
    (_write("model.safetensors", b"GARBAGE"), ["cannot hold its header"]),
    (_write("config.json", b'{"n_emb'), ["config.json is not JSON"]),
    (_set(architectures=["BertModel"]), ["'BertModel'", "LlamaForCausalLM"]),
    (_set(n_embd=32), ["wte.weight is [61, 16], config.json wants [61, 32]"]),
    (_set(n_layer=3), ["h.2.ln_1.weight is missing"]),
    (_set(n_layer=1), ["h.1.ln_1.weight [16] is extra"]),
    (_set(n_head=3), ["width=16", "num_heads=3"]),
    (_set(vocab_size="61"), ["config.json vocab_size='61'", "a whole number"]),
    (_set(scale_attn_by_inverse_layer_idx=True), ["scale_attn_by_inverse_layer_idx"]),
    (_set(alibi=True), ["alibi=True", "not understood"]),
    (_set(activation_function="mish"), ["'mish'"]),
    (_tensors(_nan), ["wpe.weight has values that are not finite"]),
    (_tensors(_extra), ["ln_f.bias is missing", "attn.rope [16] is extra"]),
    (_lose_shard, ["lacks 1 of 4 weight files: model-00002-of-00004"]),
    (_pickle, ["pytorch_model.bin is a pickle, which is never opened"]),
    (_tokenizer(257), ["the tokenizer has 257 ids", "vocab_size=61"]),
  ],
)
def test_releases(refuse, folder, tmp_path, damage, says):
  damage(folder)
  refuse("import", "--from", folder, "--workdir", tmp_path / "run", says=says)
  assert os.listdir(tmp_path) == ["model"]


def _adapter(folder):
  (folder / "config.json").unlink()
  (folder / "adapter_config.json").write_text("{}")


def _lfs(folder):
  (folder / "model.safetensors").write_text(
    "version https://git-lfs.github.com/spec/v1"
  )


def _gguf(folder):
  (folder / "model.safetensors").unlink()
  (folder / "model-q4.gguf").write_bytes(b"GGUF")


@pytest.mark.parametrize(
  "damage, says",
  [
    (_adapter, ["has no config.json", "a LoRA adapter of PEFT: import its base"]),
    (_lfs, ["model.safetensors is a pointer of Git LFS", "git lfs pull"]),
    (_gguf, ["model-q4.gguf is GGUF, quantised for llama.cpp"]),
    (lambda f: (f / "config.json").unlink(), ["model.safetensors is a language model"]),
    (
      _set(architectures=["Qwen2ForCausalLM"]),
      ["not supported; supported: GPT2LMHead"],
    ),
  ],
)
def test_what_a_folder_holds_instead_is_named(refuse, folder, tmp_path, damage, says):
  damage(folder)
  refuse("import", "--from", folder, "--workdir", tmp_path / "run", says=says)
  assert os.listdir(tmp_path) == ["model"]


def test_keys_that_are_not_used_are_named(call, folder, tmp_path):
  _set(a_new_key=None, temperature=0.6)(folder)
  done = call("import", "--from", folder, "--workdir", tmp_path / "run")
  assert done.code == 0, done.err
  assert "config.json: not used: a_new_key=None, temperature=0.6\n" in done.err


def test_weights_that_do_not_read_back_are_no_import(
  refuse, folder, tmp_path, monkeypatch
):
  """A disk that keeps other bytes than it was given."""
  restore = checkpoint.restore_weights

  def other(manager, abstract):
    params, step = restore(manager, abstract)
    params["embed"]["table"] = params["embed"]["table"].at[3, 3].multiply(-1.0)
    return params, step

  monkeypatch.setattr(checkpoint, "restore_weights", other)
  says = ["do not read back as they were written"]
  refuse("import", "--from", folder, "--workdir", tmp_path / "run", says=says)
  assert os.listdir(tmp_path) == ["model"]


def test_a_file_that_is_not_what_the_hubs_cache_says(refuse, folder, tmp_path):
  weights, blobs = folder / "model.safetensors", folder.parent / "blobs"
  blobs.mkdir()
  blob = blobs / hashlib.sha256(weights.read_bytes()).hexdigest()
  weights.rename(blob)
  weights.symlink_to(blob)
  run = tmp_path / "run"
  content = bytearray(blob.read_bytes())
  content[-1] ^= 1  # of the last number: nothing else can tell
  blob.write_bytes(content)
  says = ["model.safetensors is damaged: its SHA-256 is"]
  refuse("import", "--from", folder, "--workdir", run, says=says)
  assert not run.exists()


def test_vocabulary_larger_than_the_tokenizers(refuse, folder, tmp_path):
  def pad(arrays):
    table = arrays["transformer.wte.weight"]
    arrays["transformer.wte.weight"] = np.resize(table, (300, table.shape[1]))

  _tensors(pad)(folder)
  _set(vocab_size=300)(folder)
  _tokenizer(257)(folder)
  says = ["vocab_size=300 is larger than the tokenizer's 257", "--padded_vocab"]
  refuse("import", "--from", folder, "--workdir", tmp_path / "run", says=says)
  assert os.listdir(tmp_path) == ["model"]


def test_places(refuse, folder, tmp_path, monkeypatch):
  says = ["neither a folder nor org/name"]
  refuse("import", "--from", "/none/at/all", "--workdir", tmp_path / "r", says=says)
  says = ["--revision main", "is a folder"]
  words = ("import", "--from", folder, "--revision", "main", "--workdir")
  refuse(*words, tmp_path / "r", says=says)
  says = ["is not empty", "take another"]
  refuse("import", "--from", folder, "--workdir", folder, says=says)

  def offline(*_, **__):
    raise ConnectionError("no route\nto host")

  monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
  says = ["no such folder here", "no route"]
  refuse("import", "--from", "some/model", "--workdir", tmp_path / "r", says=says)
  assert os.listdir(tmp_path) == ["model"]


def test_harmless_extras_and_life_after_import(call, refuse, folder, tmp_path):
  def extras(arrays):
    arrays["h.0.attn.bias"] = np.ones((1, 1, 4, 4), np.float32)
    arrays["lm_head.weight"] = arrays["transformer.wte.weight"]
    for name in [n for n in arrays if n.startswith("transformer.")]:
      arrays[name.removeprefix("transformer.")] = arrays.pop(name)

  _tensors(extras)(folder)
  run, out = tmp_path / "run", tmp_path / "out"
  done = call("import", "--from", folder, "--workdir", run)
  assert done.code == 0, done.err
  assert "has no tokenizer" in done.err
  assert json.loads((run / "import.json").read_text())["sha256"].keys() == {
    "config.json",
    "model.safetensors",
  }
  refuse("sample", "--workdir", run, says=["imported without a tokenizer"])
  words = ("train", "--config", "configs/lm/pydoc.py:smoke", "--workdir", run)
  refuse(*words, says=["holds imported weights", "init_from"])
  assert call("inspect", "--workdir", run).code == 0
  assert call("export", "--workdir", run, "--to", out).code == 0
  ours = safetensors.open_folder(out)
  theirs = safetensors.open_folder(GOLDEN / "gpt2")
  assert ours.keys() == theirs.keys()
  for name, tensor in ours.items():
    np.testing.assert_array_equal(tensor.view(), theirs[name].view())
  refuse("export", "--workdir", run, "--to", out, says=["is there already"])
  other = tmp_path / "other"
  words = ("export", "--workdir", run, "--to", other, "--dtype", "float8")
  refuse(*words, says=["'float8'"])
  assert not other.exists()
