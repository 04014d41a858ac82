"""What lies next to the checkpoints: no damaged bit of it is believed."""

import json
import pathlib
import shutil

import numpy as np
import pytest

import gen_jax
from gen_jax.data import latents, tokenizers
from gen_jax.runs import workdir
from gen_jax.system import files
from gen_jax.types import InputError

STATISTICS = {"mean": [0.25, -1.5], "std": [1.0, 0.5], "sha256": "f0", "step": 3}


@pytest.fixture(scope="module")
def whole(_text_workdir, tmp_path_factory):
  """A workdir with everything that a command reads back."""
  path = shutil.copytree(_text_workdir, tmp_path_factory.mktemp("whole") / "run")
  workdir.write_sealed(path / latents.NAME, STATISTICS)
  workdir.write_sealed(path / "init_from.json", {"step": 2, "sha256": "f0"})
  return path


def _tokenizer(path: pathlib.Path):
  return tokenizers.load(path / "tokenizer").encode("Some words, and £ 12.50")


READERS = {
  "config.json": workdir.read_config,
  "run.json": workdir.read_config,
  "tokenizer/tokenizer.json": _tokenizer,
  "tokenizer/tokenizer_config.json": _tokenizer,
  "tokenizer/hashes.json": _tokenizer,
  latents.NAME: lambda path: [
    np.asarray(latents.read_statistics(path)[k]).tolist() for k in STATISTICS
  ],
  "init_from.json": lambda path: [
    files.read_sealed(path / "init_from.json")[k] for k in ("step", "sha256")
  ],
}


def _is_believed(read, path: pathlib.Path, want) -> bool:
  """Whether other values come out; a refusal is one line that names a file."""
  try:
    return read(path) != want
  except InputError as error:
    assert "\n" not in str(error) and str(path) in str(error)
    return False


@pytest.mark.parametrize("name", READERS)
def test_a_flipped_bit_or_a_torn_end_is_never_believed(name, whole, tmp_path):
  if not (whole / name).exists():
    pytest.skip(f"this tokenizer has no {name}")
  path = shutil.copytree(whole, tmp_path / "run")
  read, draw = READERS[name], np.random.default_rng(0)
  want, content = read(path), (path / name).read_bytes()
  for _ in range(60):
    at, damaged = int(draw.integers(len(content))), bytearray(content)
    damaged[at] ^= 1 << int(draw.integers(8))
    for other in (damaged, content[:at], content[:at] + bytes(len(content) - at)):
      (path / name).write_bytes(other)
      assert not _is_believed(read, path, want), (at, bytes(other[at - 9 : at + 9]))


def test_a_lost_file_of_the_tokenizer_is_named(whole, tmp_path, refuse):
  path = shutil.copytree(whole, tmp_path / "run")
  (path / "tokenizer" / "tokenizer.json").unlink()
  refuse("sample", "--workdir", path, says=["tokenizer.json is missing", "restore it"])


def test_another_config_in_its_place_is_not_this_run_s(whole, tmp_path, refuse):
  path = shutil.copytree(whole, tmp_path / "run")
  text = (path / "config.json").read_text()
  changed = json.loads(text)
  changed["sampling"]["temperature"] = 0.123
  (path / "config.json").write_text(json.dumps(changed))
  refuse("sample", "--workdir", path, says=["config.json is damaged", "run.json"])
  (path / "config.json").write_text(json.dumps(json.loads(text)))  # laid out otherwise
  assert gen_jax.open(path).state().step == 2


def test_a_kill_while_a_config_is_written_again_leaves_a_workdir_that_opens(
  whole, tmp_path, monkeypatch
):
  """A mesh may change from start to start, and with it config.json."""
  path = shutil.copytree(whole, tmp_path / "run")
  old = workdir.read_config(path)
  new = {**old, "mesh": {**old["mesh"], "data": 4}}
  write = workdir.write_json

  def killed(target, value):
    if target.name == "config.json":
      raise KeyboardInterrupt
    write(target, value)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(workdir, "write_json", killed)
    workdir.write_config(path, new)
  assert workdir.read_config(path) == old
  workdir.write_config(path, new)
  assert workdir.read_config(path) == new
