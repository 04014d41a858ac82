"""`gen-jax coordinates`: its data and figure, its refusals."""

import json

import pytest

WORDS = ("coordinates", "--config", "configs/lm/pydoc.py:smoke")


@pytest.mark.long
def test_a_check_is_data_and_a_figure(call, tmp_path):
  outcome = call(
    *(*WORDS, "--widths", "32,64", "--steps", "1", "--seeds", "1", "--json"),
    *("--out", tmp_path, "--config.data.length=8"),
  )
  assert outcome.code == 0, outcome.err
  found = json.loads(outcome.out.splitlines()[-1])
  assert json.loads((tmp_path / "coordinates.json").read_text()) == found
  assert (tmp_path / "coordinates.png").read_bytes()[:4] == b"\x89PNG"
  assert found["widths"] == [32, 64] and found["base_width"] == 32
  for name in ("standard", "muP"):
    assert list(found[name]["slopes"]) == ["input", "block_0", "block_1", "output"]
    assert all(len(row) == 2 for row in found[name]["slopes"].values())
  assert "muP: largest |slope|" in outcome.out


@pytest.mark.parametrize(
  "words, says",
  [
    (["--widths", "64,a"], ["64,a", "whole numbers"]),
    (["--widths", "64"], ["two rising numbers"]),
    (["--widths", "64,128", "--steps", "0"], ["--steps 0"]),
    (["--widths", "32,64", "--base_width", "48"], ["base_width=48", "--widths, 32"]),
    (["--widths", "32,68"], ["num_heads=4 times 68 / 32"]),
  ],
)
def test_refusals(refuse, words, says):
  refuse(*WORDS, *words, says=says)


def test_training_refuses_a_base_above_the_width(refuse, tmp_path):
  where = ("--workdir", tmp_path, "--config.task.model.base_width=64")
  says = ["base_width=64 must be at most width=32"]
  refuse("train", *WORDS[1:], *where, says=says)
