"""The latent cache: what goes in comes out, and what does not fit is said."""

import json

import numpy as np
import pytest

from gen_jax import types
from gen_jax.data import datasets, latents, tokenizers


def written(folder, num=6, sides=2):
  """A cache of codes [sides, 2, 2, 4], and the codes."""
  generator = np.random.default_rng(0)
  codes = generator.standard_normal((num, sides, 2, 2, 4)).astype(np.float16)
  for split in ("train", "validation"):
    pairs = ((c.astype(np.float32), f"picture {i}") for i, c in enumerate(codes))
    assert latents.write(folder / f"{split}.array_record", pairs) == num
  notes = {"mean": [0.5, 1.0], "std": [2.0, 3.0], "sha256": "a" * 64}
  (folder / latents.NAME).write_text(json.dumps(notes))
  return codes


def data(folder, **changes):
  keys = dict(
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
    assert examples[i]["caption"] == f"picture {i}"
  found = latents.Latents(str(tmp_path)).statistics()
  np.testing.assert_array_equal(found["std"], np.float32([2.0, 3.0]))


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


def test_what_breaks_off_leaves_nothing(tmp_path):
  def pairs():
    yield np.zeros((1, 2, 2, 4)), "one"
    raise RuntimeError("power cut")

  with pytest.raises(RuntimeError):
    latents.write(tmp_path / "train.array_record", pairs())
  assert not list(tmp_path.iterdir())
