"""muP passes the coordinate check, the standard fails it, each mistake is seen."""

import pytest

from gen_jax.build import config_files
from gen_jax.build import overrides as overriding
from gen_jax.nn import widths as nn_widths
from gen_jax.sweeps import coordinates
from gen_jax.train import mup
from gen_jax.types import InputError
from tests import tiny

TEXT = {
  "task.model.width": 64,
  "task.model.num_heads": 4,
  "data.length": 16,
  "data.batch_size": 16,
  "optimizer.learning_rate.peak": 0.001,
}


def config(name="configs/lm/pydoc.py:smoke", **changes):
  pairs = {**TEXT, **changes} if "lm" in name else changes
  return overriding.apply(config_files.plain(name), list(pairs.items()))


def test_a_slope_is_that_of_a_power():
  assert coordinates.slope([2, 4, 16], [8.0, 4.0, 1.0]) == pytest.approx(-1.0)
  assert coordinates.slope([2, 4], [1.0, float("nan")]) == float("inf")


def test_streams_are_what_goes_in_and_out_of_blocks():
  task, batch = tiny.language_model(tied_head=False), tiny.text_batch()
  params = tiny.weights(task.init, batch)
  found = coordinates.streams(task, params, {}, batch, tiny.keys())
  assert list(found) == ["input", "block_0", "block_1", "output"]
  (logits, _), kept = task.model.apply(
    {"params": params}, batch["inputs"], capture_intermediates=True
  )
  values = {"output": logits}
  values |= {n: kept["intermediates"][n]["__call__"][0][0] for n in list(found)[1:3]}
  rows = kept["intermediates"]["embed"]["__call__"][0]
  values["input"] = rows + kept["intermediates"]["position"]["__call__"][0]
  for name, x in values.items():
    assert float(found[name][0]) == pytest.approx(float(abs(x).mean()), rel=1e-5)
    assert found[name][1] == x.shape[-1]


@pytest.mark.long
def test_streams_of_an_image_end_in_an_image():
  task, batch = tiny.diffusion_task(), tiny.image_batch()
  params = tiny.weights(task.init, batch)
  found = coordinates.streams(task, params, {}, batch, tiny.keys())
  assert found["output"][1] == 1 and found["up_0_1"][1] == 8
  assert {"input", "down_0_0", "middle_in", "middle_transformer"} <= found.keys()


@pytest.mark.long
def test_a_transformer(tmp_path):
  """Two octaves; the last test has all four."""
  found = coordinates.check(config(), (64, 256), tmp_path, num_seeds=3)
  assert found["muP"]["worst"] < coordinates.LIMIT < found["standard"]["worst"]
  names = ["input", "block_0", "block_1", "output"]
  assert list(found["muP"]["slopes"]) == names
  text = coordinates.table(found)
  assert "standard" in text[-2] and text[-2].endswith("fails")
  assert "muP" in text[-1] and text[-1].endswith("passes")
  assert coordinates.png(found)[:4] == b"\x89PNG"


@pytest.mark.long
def test_rates_alone_forgotten_are_seen(tmp_path, monkeypatch):
  monkeypatch.setattr(mup, "ratios", lambda *trees: {})
  found = coordinates.check(config(), (64, 256), tmp_path, num_seeds=3)
  assert found["muP"]["worst"] > coordinates.LIMIT


@pytest.mark.long
def test_initial_sizes_alone_forgotten_are_seen(tmp_path, monkeypatch):
  monkeypatch.setattr(nn_widths, "ratio", lambda *sizes: 1.0)
  found = coordinates.check(config(), (64, 256), tmp_path, num_seeds=3)
  assert found["muP"]["worst"] > coordinates.LIMIT


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["lion", "muon"])
def test_other_optimisers(tmp_path, optimizer):
  rate = {"lion": 1e-3, "muon": 0.02}[optimizer]
  changes = {"optimizer.name": optimizer, "optimizer.learning_rate.peak": rate}
  found = coordinates.check(config(**changes), (64, 256), tmp_path, num_seeds=3)
  assert found["muP"]["worst"] < coordinates.LIMIT < found["standard"]["worst"]


@pytest.mark.long
def test_a_unet(tmp_path):
  changes = {"optimizer.learning_rate.peak": 0.0005, "data.batch_size": 8}
  digits = config("configs/diffusion/digits.py:smoke", **changes)
  found = coordinates.check(digits, (64, 256), tmp_path, num_steps=3, num_seeds=3)
  assert found["muP"]["worst"] < coordinates.LIMIT < found["standard"]["worst"]


@pytest.mark.long
def test_from_64_to_1024_every_stream_keeps_its_size(tmp_path):
  """|slope| below 0.05 under muP; the standard parametrisation fails the same test."""
  found = coordinates.check(config(), (64, 128, 256, 512, 1024), tmp_path, num_seeds=3)
  for name, slopes in found["muP"]["slopes"].items():
    if name != coordinates.OUTPUT:
      assert max(map(abs, slopes)) < 0.05, name
  assert found["standard"]["worst"] > 0.05


@pytest.mark.parametrize(
  "widths, base, says",
  [
    ((64,), 64, "two rising numbers"),
    ((128, 64), 64, "two rising numbers"),
    ((64, 128), 96, "base_width=96 must be at most the smallest of --widths, 64"),
  ],
)
def test_bad_widths(tmp_path, widths, base, says):
  with pytest.raises(InputError, match=says):
    coordinates.check(config(), widths, tmp_path, base_width=base)


def test_an_autoencoder_has_no_base(tmp_path):
  with pytest.raises(InputError, match="transformer, UNet or DiT"):
    coordinates.check(
      config_files.plain("configs/vae/emoji.py"), (8, 16), tmp_path, num_seeds=3
    )
