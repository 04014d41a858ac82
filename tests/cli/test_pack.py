"""`gen-jax pack`, training from what it writes, and what a changed shard does."""

import json

import pytest

from gen_jax.runs import bill
from tests.data.stored import images

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def pack(tmp_path):
  folder = images.folder(tmp_path / "images", 40)
  to = tmp_path / "store"
  return ("pack", "--source", folder, "--to", to, "--workers=1", "--held_out=0.2")


def train(store, *more):
  return (
    *("train", "--config", "configs/diffusion/digits.py:smoke"),
    *("--config.data.source=image_store", f"--config.data.source.path={store}"),
    "--config.data.tokenizer=bytes",
    "--config.optimizer.learning_rate=constant",
    "--config.optimizer.learning_rate.peak=1e-3",
    *more,
  )


@pytest.mark.long
def test_a_store_is_trained_from_and_resumed(
  call, train_in_parts, pack, refuse, tmp_path
):
  told = call(*pack, "--json")
  assert told.code == 0, told.err
  result = json.loads(told.out.splitlines()[-1])
  assert sum(result["num_images"].values()) == 40
  store = tmp_path / "store"
  train_in_parts(lambda *words: train(store, *words))
  assert [bill.so_far(tmp_path / n)["starts"] for n in ("whole", "parts")] == [1, 2]
  assert bill.so_far(tmp_path / "parts")["chip_hours"] > 0
  page = call("report", "--workdir", tmp_path / "parts")
  assert (
    page.code == 0 and "cost so far" in (tmp_path / "parts/report.html").read_text()
  )
  shard = store / "train-00000-00000.bin"
  content = shard.read_bytes()
  assert call("inspect", store).code == 0
  shard.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
  refuse("inspect", store, says=["1 of 2 shards", "train-00000-00000"])
  shard.write_bytes(content[:-1])
  refuse("inspect", store, says=[shard.name, "cut off"])
  refuse(*train(store, "--workdir", tmp_path / "c"), says=[shard.name, "cut off"])


@pytest.mark.parametrize(
  ("flag", "says"),
  [
    ("--held_out=1.5", ["--held_out=1.5", "in [0, 1)"]),
    ("--workers=100000", ["--workers 100000", "four for each core"]),
    ("--drop=near", ["--drop", "exact"]),
    ("--caption=body", ["'body'", "There are: file_name, text", "--caption names"]),
  ],
)
def test_flags_that_cannot_be(refuse, pack, flag, says):
  refuse(*pack, flag, says=says)
