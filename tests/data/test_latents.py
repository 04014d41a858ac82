"""The latent cache: what goes in comes out, and what does not fit is said."""

import contextlib
import json

import numpy as np
import pytest
from array_record.python import array_record_module
from flax import serialization

from gen_jax import types
from gen_jax.data import datasets, latents, tokenizers
from gen_jax.data.tokens import indexed
from gen_jax.system import files


def written(folder, num=6, sides=2):
  """A cache of codes [sides, 2, 2, 4], and the codes."""
  folder.mkdir(exist_ok=True)
  generator = np.random.default_rng(0)
  codes = generator.standard_normal((num, sides, 2, 2, 4)).astype(np.float16)
  about = [{"caption": f"image {i}"} for i in range(num)]
  notes = {"mean": [0.5, 1.0], "std": [2.0, 3.0], "sha256": "a" * 64}
  notes |= in_shards(folder, codes.astype(np.float32), about)
  (folder / latents.NAME).write_text(json.dumps(files.sealed(notes)))
  return codes


def in_shards(folder, codes, about):
  """Writes both splits in shards of four; returns what latents.json says of them."""
  splits = {}
  for split in ("train", "validation"):
    pairs = list(zip(codes, about, strict=True))
    splits[split] = [
      latents.write(folder / f"{split}-{i:05}", pairs[i : i + 4])
      for i in range(0, len(pairs), 4)
    ]
  return {"dtype": "uint8", "splits": splits}


def data(folder, **changes):
  keys = dict(
    prompts=("caption",),
    source=latents.Latents(str(folder)),
    tokenizer=tokenizers.plain_bytes,
    image_size=4,
    channels=1,
    latent_size=2,
    latent_channels=2,
    caption_length=16,
    batch_size=3,
  )
  return datasets.LatentData(**{**keys, **changes})


def test_round_trip(tmp_path):
  codes = written(tmp_path)
  examples = latents.Latents(str(tmp_path)).codes("train")
  assert len(examples) == len(codes)
  for i in (4, 0, 5):  # random access
    np.testing.assert_array_equal(examples[i]["codes"], codes[i])
    assert examples[i]["caption"] == f"image {i}"
  found = latents.Latents(str(tmp_path)).statistics()
  np.testing.assert_array_equal(found["std"], np.float32([2.0, 3.0]))


def test_labels_are_kept_with_their_codes(tmp_path):
  codes = written(tmp_path)
  about = [{"caption": "", "label": 5 - i} for i in range(6)]
  notes = {"mean": [0.5, 1.0], "std": [2.0, 3.0], "class_names": list("abcdef")}
  notes |= in_shards(tmp_path, codes, about)
  (tmp_path / latents.NAME).write_text(json.dumps(files.sealed(notes)))
  made = data(tmp_path, prompts=("label",), tokenizer=None, caption_length=None)
  batch = made.pipeline("train", None, seed=0).batch(0)
  assert batch.keys() == made.abstract_batch().keys()
  for code, label in zip(batch["latent"], batch["label"], strict=True):
    np.testing.assert_array_equal(code, codes[5 - label][0])
  assert made.source.class_names() == tuple("abcdef")
  (tmp_path / latents.NAME).write_text(
    json.dumps(files.sealed({**notes, "class_names": []}))
  )
  with pytest.raises(types.InputError, match="has no labels"):
    made.source.class_names()


@pytest.mark.parametrize("flip", [False, True])
def test_batches_hold_each_code_once_an_epoch_mirrored_or_not(tmp_path, flip):
  codes = written(tmp_path).astype(np.float32)
  made = data(tmp_path, flip=flip).pipeline("train", tokenizers.plain_bytes(), seed=0)
  seen, mirrored = [], 0
  for step in range(8):
    batch = made.batch(step, range(3))
    assert batch["latent"].shape == (3, 2, 2, 4)
    for latent in batch["latent"]:
      at = np.argwhere((codes == latent).all((2, 3, 4)))
      assert at.shape == (1, 2)
      seen.append(at[0, 0])
      mirrored += at[0, 1]
  assert sorted(seen[:6]) == sorted(seen[6:12]) == list(range(6))
  assert (0 < mirrored < 24) == flip


@pytest.mark.parametrize(
  "changes, named",
  [(dict(latent_size=3), "latent_size"), (dict(latent_channels=1), "latent_channels")],
)
def test_codes_of_another_shape_are_refused(tmp_path, changes, named):
  written(tmp_path)
  with pytest.raises(types.InputError, match=named):
    data(tmp_path, **changes).pipeline("train", tokenizers.plain_bytes(), seed=0)


def test_a_cache_that_is_none_or_cannot_serve_is_refused(tmp_path):
  with pytest.raises(types.InputError, match="gen-jax encode"):
    latents.Latents(str(tmp_path)).codes("train")
  written(tmp_path, sides=1)
  with pytest.raises(types.InputError, match="--flip"):
    data(tmp_path, flip=True).pipeline("train", tokenizers.plain_bytes(), seed=0)
  (tmp_path / latents.NAME).write_text('{"mean": [0], "std": [0]}')
  with pytest.raises(types.InputError, match="damaged"):
    latents.Latents(str(tmp_path)).codes("train")


def everything(folder):
  """All that a cache says."""
  source = latents.Latents(str(folder))
  statistics = source.statistics()
  for split in ("train", "validation"):
    codes = source.codes(split)
    for i in range(len(codes)):
      assert codes[i]["codes"].shape == (2, 2, 2, 4)
  return statistics


@pytest.mark.parametrize("name", ["train-00004.bin", latents.NAME])
def test_every_damage_is_found(tmp_path, name):
  """A bit anywhere, a tail cut off or zeroed, another split's file, none at all."""
  written(tmp_path)
  path = tmp_path / name
  content = path.read_bytes()
  rng = np.random.default_rng(0)
  flips = [bytearray(content) for _ in range(30)]
  for flipped, at in zip(flips, rng.integers(0, len(content), 30), strict=True):
    flipped[at] ^= 1 << int(rng.integers(8))
  cuts = [content[:n] for n in (0, 1, len(content) // 2, len(content) - 1)]
  zeroed = content[: len(content) // 2] + bytes(len(content) - len(content) // 2)
  for damaged in (*flips, *cuts, zeroed, b"[" * 10**5, content + b"x"):
    path.write_bytes(damaged)
    with pytest.raises(types.InputError, match=r"damaged|cut off"):
      everything(tmp_path)
  path.unlink()
  with pytest.raises(types.InputError, match=name):
    everything(tmp_path)


def test_a_changed_index_gives_the_right_codes_or_an_error(tmp_path):
  codes = written(tmp_path)
  path = tmp_path / "train-00000.idx"
  content = path.read_bytes()
  for at in range(len(content)):
    path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
    indexed.open_shard.cache_clear()
    with contextlib.suppress(types.InputError):
      found = latents.Latents(str(tmp_path)).codes("train")
      for i in range(6):
        np.testing.assert_array_equal(found[i]["codes"], codes[i])


def test_caches_of_older_versions_are_read(tmp_path):
  codes = written(tmp_path)
  path = tmp_path / "train.array_record"
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for i, code in enumerate(codes):
    record = {"codes": code, "caption": f"image {i}"}
    writer.write(serialization.msgpack_serialize(record))
  writer.close()
  notes = json.loads((tmp_path / latents.NAME).read_text())
  old = {name: notes[name] for name in ("mean", "std", "sha256")}
  old["files"] = {path.name: files.sha256(path)}
  (tmp_path / latents.NAME).write_text(json.dumps(old))
  found = latents.Latents(str(tmp_path)).codes("train")
  for i in (5, 0):
    np.testing.assert_array_equal(found[i]["codes"], codes[i])
    assert found[i]["caption"] == f"image {i}"
  with pytest.raises(types.InputError, match=r"has no validation\.array_record"):
    latents.Latents(str(tmp_path)).codes("validation")
  path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(types.InputError, match="not what was written"):
    latents.Latents(str(tmp_path)).codes("train")


def test_what_breaks_off_leaves_nothing(tmp_path):
  def pairs():
    yield np.zeros((1, 2, 2, 4)), {"caption": "one"}
    raise RuntimeError("power cut")

  with pytest.raises(RuntimeError):
    latents.write(tmp_path / "train-00000", pairs())
  assert not list(tmp_path.iterdir())
